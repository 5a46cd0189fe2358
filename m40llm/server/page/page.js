// The page: what a click or a key leads to.

import { initModels, refreshModels } from "./models.js";
import { isDark, initSettings, openSettings, setTheme, settings } from "./settings.js";
import * as store from "./store.js";
import * as talk from "./talk.js";
import * as view from "./view.js";

const { find } = view;
const { chats } = talk;
const prompt = find("#prompt");
const scroller = find("#scroller");
const isNarrow = matchMedia("(max-width: 760px)");

/** A key was entered: what waited for it goes on. */
async function onKey() {
  await refreshModels();
  if (talk.current.messages.at(-1)?.error?.kind === "key") talk.again();
}

// --- wiring ---

const showKey = () => openSettings(talk.current.system, "key");
const showSettings = () => openSettings(talk.current.system);
const lastOfUser = () => talk.current.messages.findLast((message) => message.role === "user");

async function copied(button, text) {
  await view.copy(text);
  const label = button.querySelector("span") ?? button;
  label.textContent = "Copied";
  setTimeout(() => (label.textContent = "Copy"), 1500);
}

const ACTS = {
  copy: (button) => copied(button, view.partsOf(view.messageOf(button, talk.current)).text),
  "copy-code": (button) => copied(button, button.closest(".code").querySelector("pre").textContent),
  edit: (button) => talk.edit(view.messageOf(button, talk.current)),
  "edit-last": () => talk.edit(lastOfUser()),
  "cancel-edit": () => talk.endEdit(),
  again: (button) => (button.closest("#notice") ? refreshModels() : talk.again()),
  key: showKey,
  settings: showSettings,
  new: () => show(store.newChat(settings.system)),
  open: ({ dataset }) => chats.has(dataset.id) && show(chats.get(dataset.id)),
  delete: ({ dataset }) => {
    if (chats.has(dataset.id)) talk.remove([chats.get(dataset.id)]);
    find("#sidebar .new").focus();
  },
  close: () => find("#settings").close(),
  menu: () => {
    setSidebar(document.body.dataset.sidebar !== "open");
    if (isNarrow.matches) find("#sidebar .new").focus();
  },
  theme: () => setTheme(isDark() ? "light" : "dark"),
  latest: () => ((scroller.scrollTop = scroller.scrollHeight), prompt.focus()),
  export: exportChats,
  import: () => find("#import-file").click(),
  "delete-all": () => {
    find("#settings").close();
    if (chats.size) talk.remove([...chats.values()]);
  },
};

/** Opens a conversation. On a phone a focus would raise the keyboard over it: none there. */
function show(chat) {
  talk.open(chat);
  if (isNarrow.matches) setSidebar(false);
  else prompt.focus();
}

function setSidebar(isOpen) {
  document.body.dataset.sidebar = isOpen ? "open" : "closed";
  find("#menu").setAttribute("aria-expanded", isOpen);
  // On a phone the drawer covers the page: what it covers must not take the focus.
  for (const part of [scroller, find("#composer")]) part.inert = isOpen && isNarrow.matches;
}

function exportChats() {
  const file = new Blob([store.exported([...chats.values()])], { type: "application/json" });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file) });
  link.download = `m40llm-conversations-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

async function importChats({ target }) {
  const [file] = target.files;
  if (!file) return;
  const note = find("#import-note");
  try {
    const found = store.imported(await file.text(), chats);
    found.forEach(talk.keep);
    note.textContent = `${found.length} conversations read.`;
    talk.refresh();
  } catch (failure) {
    note.textContent = `Not read: ${failure.message}.`;
  }
  target.value = "";
}

function submitPrompt() {
  const draft = talk.draftOf(talk.current);
  if (!prompt.value.trim() || !talk.send(prompt.value)) return;
  prompt.value = "";
  view.grow(prompt);
  store.forget(draft);
}

/** Enter sends, Shift+Enter is a new line; the Enter that ends an input method's word is neither. */
function onEnter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  event.target.form.requestSubmit();
}

function onEscape(event) {
  if (event.key !== "Escape" || event.isComposing || find("#settings").open) return;
  if (isNarrow.matches && document.body.dataset.sidebar === "open") {
    setSidebar(false);
    find("#menu").focus();
  } else if (talk.editing) talk.endEdit();
  else talk.stop();
}

function listen() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-act]");
    if (button) ACTS[button.dataset.act](button);
  });
  document.addEventListener("keydown", onEscape);
  document.addEventListener("submit", (event) => {
    if (event.target.method !== "dialog") event.preventDefault();
    if (event.target.id === "composer") {
      // Enter has no submitter: it never stops an answer.
      if (talk.isRunning(talk.current) && event.submitter) talk.stop();
      else submitPrompt();
    }
    if (event.target.classList.contains("editor")) talk.sendEdited(event.target.elements.text.value);
  });
  for (const part of [find("#messages"), prompt]) {
    part.addEventListener("keydown", (event) => event.target.tagName === "TEXTAREA" && onEnter(event));
    part.addEventListener("input", (event) => view.grow(event.target));
  }
  prompt.addEventListener("input", () => store.save(talk.draftOf(talk.current), prompt.value));
  find("#import-file").addEventListener("change", importChats);
  find("#backdrop").addEventListener("click", () => setSidebar(false));
  scroller.addEventListener("scroll", () => (find("#latest").hidden = talk.isAtBottom()));
  isNarrow.addEventListener("change", () => setSidebar(!isNarrow.matches));
  addEventListener("storage", talk.onStorage);
  addEventListener("pagehide", talk.leave);
  // Safari's keyboard covers the page and does not resize it: the visible height is what counts.
  visualViewport?.addEventListener("resize", () => {
    if (visualViewport.scale !== 1) return; // a person who zooms in
    document.documentElement.style.setProperty("--height", `${visualViewport.height}px`);
  });
}

listen();
initModels();
initSettings({
  onKey,
  onSystem: (text) => {
    talk.current.system = text;
    if (chats.has(talk.current.id)) talk.keep(talk.current);
  },
});
setSidebar(!isNarrow.matches);
show(chats.get(store.load("open", "")) ?? store.newChat(settings.system));
refreshModels();
