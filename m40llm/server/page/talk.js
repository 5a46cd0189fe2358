// The conversations: which is open, which are being answered, and what changes them.

import { readAnswer, requestBody } from "./chat.js";
import { chosenModel } from "./models.js";
import { settings } from "./settings.js";
import * as store from "./store.js";
import * as view from "./view.js";

const { find } = view;
const prompt = find("#prompt");
const scroller = find("#scroller");

export const chats = new Map(store.loadChats().map((chat) => [chat.id, chat])); // id -> conversation
export const running = new Map(); // id -> AbortController of its answer
export let current = store.newChat(settings.system);
export let editing = null; // the message in the editor

export const isRunning = (chat) => running.has(chat.id);

// --- conversations ---

export function keep(chat) {
  chats.set(chat.id, chat);
  if (store.saveChat(chat)) return;
  view.toast("This browser has no room left: the history is no longer kept. Export or delete some.");
}

export function refresh() {
  view.showList(chats.values(), current, isRunning);
  const label = isRunning(current) ? "Stop" : "Send";
  find("#send").setAttribute("aria-label", label);
  find("#send").title = label;
  find("#send").classList.toggle("stop", isRunning(current));
  document.title = current.title ? `${current.title} · m40llm` : "m40llm";
}

/** Where the storage has what is typed but not sent: in one place for all that are not yet begun. */
export const draftOf = (chat) => `draft.${chats.has(chat.id) ? chat.id : "new"}`;

export function open(chat) {
  current = chat;
  editing = null;
  store.save("open", chat.id);
  view.hush();
  view.showChat(chat, isRunning(chat));
  prompt.value = store.load(draftOf(chat), "");
  view.grow(prompt);
  refresh();
  scroller.scrollTop = scroller.scrollHeight;
}

export const openNew = () => open(store.newChat(settings.system));

export function remove(doomed) {
  for (const chat of doomed) {
    running.get(chat.id)?.abort();
    chats.delete(chat.id);
    store.forgetChat(chat.id);
    store.forget(`draft.${chat.id}`);
  }
  if (doomed.includes(current)) openNew();
  else refresh();
  view.toast(doomed.length === 1 ? "Conversation deleted." : `${doomed.length} deleted.`, () => {
    doomed.forEach(keep);
    open(doomed[0]);
  });
}

// --- answers ---

function isBusy() {
  if (isRunning(current)) view.toast("Still answering: Esc stops it.");
  return isRunning(current);
}

/** Takes the typed message; false where an answer is still under way. */
export function send(text) {
  if (isBusy()) return false;
  const message = { role: "user", content: text };
  current.title ||= text.trim().split("\n")[0].slice(0, 60);
  current.messages.push(message);
  view.addArticle(message);
  scroller.scrollTop = scroller.scrollHeight;
  answer(current);
  return true;
}

async function answer(chat) {
  const controller = new AbortController();
  const message = { role: "assistant", content: "", reasoning: "", stats: null, error: null, stop: "" };
  running.set(chat.id, controller);
  chat.messages.push(message);
  chat.updated = Date.now();
  keep(chat);
  if (chat === current) {
    view.hush();
    following(() => view.addArticle(message));
  }
  refresh();
  const draw = painter(chat, message);
  find("#notice").hidden = true; // an answer says itself what is wrong
  const body = async () => requestBody(chat, await chosenModel(), settings);
  await readAnswer(message, body, store.loadKey(), controller.signal, draw);
  running.delete(chat.id);
  if (chats.has(chat.id)) keep(chat);
  showProgress(chat, message);
  refresh();
}

/** Draws once a frame, and writes to storage once a second, however fast tokens come. */
function painter(chat, message) {
  let isDue = false;
  let saved = Date.now();
  return () => {
    if (!isDue) requestAnimationFrame(() => ((isDue = false), showProgress(chat, message)));
    isDue = true;
    if (Date.now() - saved < 1000 || !chats.has(chat.id)) return;
    saved = Date.now();
    store.saveChat(chat);
  };
}

function showProgress(chat, message) {
  if (chat !== current) return;
  following(() => view.showMessage(message, isRunning(chat)));
  view.speak(message, isRunning(chat));
}

/** Changes the page; stays at its bottom only where the reader was there. */
function following(change) {
  const wasAtBottom = isAtBottom();
  change();
  if (wasAtBottom) scroller.scrollTop = scroller.scrollHeight;
  find("#latest").hidden = isAtBottom();
}

export const isAtBottom = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 40;

/** Asks anew for the answer to the last message of the person. */
export function again() {
  if (isRunning(current)) return;
  const end = current.messages.findLastIndex((message) => message.role === "user") + 1;
  truncate(end);
  answer(current);
  prompt.focus();
}

function truncate(end) {
  current.messages.length = end;
  editing = null;
  view.showChat(current, false);
}

export function stop() {
  running.get(current.id)?.abort();
}

/** The page goes away, and its requests with it: what has come is kept as stopped. */
export function leave() {
  for (const [id, controller] of running) {
    chats.get(id).messages.at(-1).stop = "stopped";
    store.saveChat(chats.get(id));
    controller.abort();
  }
}

// --- editing ---

export function edit(message) {
  if (!message || isRunning(current)) return;
  if (editing) endEdit();
  editing = message;
  view.showEditor(message);
}

export function endEdit() {
  view.hideEditor(editing);
  editing = null;
}

export function sendEdited(text) {
  if (!text.trim() || isBusy()) return;
  truncate(current.messages.indexOf(editing));
  if (!current.messages.length) current.title = "";
  send(text);
  prompt.focus();
}

/** Another tab wrote or deleted a conversation. */
export function onStorage({ key }) {
  const id = store.idOfKey(key);
  if (!id || running.has(id)) return;
  const chat = store.loadChat(id);
  if (chat) chats.set(id, chat);
  else chats.delete(id);
  if (id === current.id && chat && !editing) {
    current = chat;
    view.showChat(chat, false);
  }
  refresh();
}
