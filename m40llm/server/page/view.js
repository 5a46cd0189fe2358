// The DOM of messages and of the list of conversations. Nothing is kept here but which node shows
// which message; clicks are told apart by data-act and handled in page.js.

import { inWords } from "./api.js";
import { element, render } from "./markdown.js";

export const find = (selector) => document.querySelector(selector);

const articles = new WeakMap(); // message -> the article that shows it

function fromTemplate(name) {
  return find(`#${name}-template`).content.firstElementChild.cloneNode(true);
}

export function showChat(chat, isRunning) {
  find("#messages").replaceChildren(...chat.messages.map((message) => newArticle(message)));
  find("#empty").hidden = chat.messages.length > 0;
  chat.messages.forEach((message, i) => {
    showMessage(message, isRunning && i === chat.messages.length - 1);
  });
}

export function addArticle(message) {
  find("#empty").hidden = true;
  find("#messages").append(newArticle(message));
  showMessage(message, message.role === "assistant");
}

function newArticle(message) {
  const article = fromTemplate(message.role);
  articles.set(message, article);
  return article;
}

/** The message that an element of the page belongs to. */
export function messageOf(node, chat) {
  const article = node.closest("article");
  return chat.messages.find((message) => articles.get(message) === article);
}

export function showMessage(message, isRunning) {
  const article = articles.get(message);
  if (!article) return;
  if (message.role === "user") article.querySelector(".text").textContent = message.content;
  else showAnswer(article, message, isRunning);
}

function showAnswer(article, message, isRunning) {
  const { thoughts, text } = partsOf(message);
  const details = article.querySelector("details");
  details.hidden = !thoughts;
  if (thoughts) render(details.lastElementChild, thoughts);
  render(article.querySelector(".answer"), text);
  article.classList.toggle("running", isRunning);
  article.setAttribute("aria-busy", isRunning);
  article.querySelector(".waiting").hidden = !isRunning || Boolean(text);
  article.querySelector(".stats").textContent = statsLine(message);
  article.querySelector(".actions").hidden = isRunning;
  article.querySelector("[data-act=copy]").hidden = !text;
  article.querySelector(".actions [data-act=again]").hidden = Boolean(message.error);
  showError(article.querySelector(".error"), message.error);
}

/** What a model thinks aloud, in a field of its own or between its tags, apart from its answer. */
export function partsOf({ content, reasoning }) {
  const match = content.match(/^\s*<think>([^]*?)(<\/think>\s*|$)/);
  const thoughts = (reasoning + (match?.[1] ?? "")).trim();
  return { thoughts, text: match ? content.slice(match[0].length) : content };
}

const STOPS = { __proto__: null, length: "cut at the token limit", stopped: "stopped" };

function statsLine({ stats, stop }) {
  const parts = [];
  if (stats?.nTokens) {
    parts.push(`${stats.nTokens} ${stats.nTokens === 1 ? "token" : "tokens"}`);
    if (stats.perSecond) parts.push(`${stats.perSecond.toFixed(1)} tokens/s`);
    parts.push(`first after ${(stats.firstMs / 1000).toFixed(2)} s`);
    if (stats.nPrompt) parts.push(`prompt of ${stats.nPrompt}${reused(stats.nCached)}`);
  }
  if (STOPS[stop]) parts.push(STOPS[stop]);
  return parts.join(" · ");
}

const reused = (nCached) => (nCached ? ` (${nCached} reused)` : "");

const ACTIONS = {
  __proto__: null,
  key: ["key", "Enter key"],
  context: ["new", "New conversation"],
  large: ["edit-last", "Edit message"],
  refused: ["settings", "Settings"],
};

export function showError(box, error) {
  box.hidden = !error;
  if (!error) return box.replaceChildren();
  const { title, advice } = inWords(error);
  const buttons = [ACTIONS[error.kind], ["again", "Try again"]].filter(Boolean).map(actButton);
  const detail = error.detail ? [element("p", { className: "detail" }, error.detail)] : [];
  return box.replaceChildren(
    element("strong", {}, title),
    element("p", {}, advice),
    ...detail,
    element("div", { className: "buttons" }, ...buttons),
  );
}

function actButton([act, textContent]) {
  const className = act === "again" ? "" : "primary";
  const button = element("button", { type: "button", className, textContent });
  button.dataset.act = act;
  return button;
}

/** Puts a form in the place of a message; gives its text area. */
export function showEditor(message) {
  const article = articles.get(message);
  const form = fromTemplate("editor");
  const area = form.querySelector("textarea");
  area.value = message.content;
  article.classList.add("editing");
  article.append(form);
  grow(area);
  area.focus();
  return area;
}

export function hideEditor(message) {
  const article = articles.get(message);
  article.classList.remove("editing");
  article.querySelector("form").remove();
  article.querySelector("[data-act=edit]").focus();
}

/** As high as its text; the style sheet sets the limit. */
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

export function titleOf(chat) {
  return chat.title || "New conversation";
}

export function showList(chats, current, isRunning) {
  const items = [...chats].sort((a, b) => b.updated - a.updated).map((chat) => {
    const item = fromTemplate("chat");
    const [open, remove] = item.children;
    open.textContent = titleOf(chat);
    open.dataset.id = remove.dataset.id = chat.id;
    if (chat === current) open.setAttribute("aria-current", "true");
    item.classList.toggle("running", isRunning(chat));
    remove.setAttribute("aria-label", `Delete: ${titleOf(chat)}`);
    return item;
  });
  find("#chats").replaceChildren(...items);
}

let nSpoken = 0; // characters of the answer that the live region has

/** Gives a screen reader the answer a sentence at a time, and what is left at its end. */
export function speak(message, isRunning) {
  const { text } = partsOf(message);
  if (nSpoken > text.length) nSpoken = 0;
  const unspoken = text.slice(nSpoken);
  const ends = [...unspoken.matchAll(/[.!?:]\s|\n/g)];
  const end = isRunning ? (ends.length ? ends.at(-1).index + 1 : 0) : unspoken.length;
  const words = unspoken.slice(0, end).replace(/[*`#|]/g, "").trim();
  nSpoken += end;
  if (words) find("#live").append(element("p", {}, words));
}

export function hush() {
  nSpoken = 0;
  find("#live").replaceChildren();
}

let toastTimer = 0;

/** A short word at the bottom; with `undo`, a button that takes the action back. */
export function toast(text, undo = null) {
  const box = find("#toast");
  const close = () => box.replaceChildren();
  const button = element("button", { type: "button", textContent: "Undo" });
  button.onclick = () => {
    close();
    undo();
  };
  box.replaceChildren(element("span", {}, text), ...(undo ? [button] : []));
  clearTimeout(toastTimer);
  toastTimer = setTimeout(close, 10000);
}

/** Copies even where the clipboard's own interface is missing: over plain HTTP in a LAN. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const focused = document.activeElement;
    const area = element("textarea", { value: text, className: "hidden" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    focused?.focus();
  }
}
