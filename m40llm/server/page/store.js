// What the browser keeps: conversations, settings, drafts. One entry a conversation, so that two
// tabs do not overwrite each other's. Storage may be full or forbidden: `save` then says false.

const PREFIX = "m40llm.";
const CHAT = PREFIX + "chat.";
const ROLES = ["user", "assistant"];

function attempt(action, otherwise) {
  try {
    return action();
  } catch {
    return otherwise;
  }
}

export function load(name, otherwise = null) {
  return attempt(() => JSON.parse(localStorage.getItem(PREFIX + name)) ?? otherwise, otherwise);
}

export function save(name, value) {
  return attempt(() => {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  }, false);
}

export function forget(name) {
  attempt(() => localStorage.removeItem(PREFIX + name));
}

/** The key stays in this tab's session unless the person asks to remember it. */
export function loadKey() {
  return attempt(() => sessionStorage.getItem(PREFIX + "key"), null) ?? load("key", "");
}

export function saveKey(key, isRemembered) {
  forget("key");
  attempt(() => sessionStorage.setItem(PREFIX + "key", key));
  if (isRemembered && key) save("key", key);
}

// `crypto.randomUUID` exists only over HTTPS and on localhost; this page is also read over a LAN.
export function newId() {
  const random = crypto.getRandomValues(new Uint32Array(2));
  return Date.now().toString(36) + random[0].toString(36) + random[1].toString(36);
}

export function newChat(system = "") {
  return { id: newId(), title: "", system, updated: Date.now(), messages: [] };
}

export const saveChat = (chat) => save("chat." + chat.id, chat);
export const forgetChat = (id) => forget("chat." + id);

/** The id of the conversation that a storage key holds, or "". */
export const idOfKey = (key) => (key?.startsWith(CHAT) ? key.slice(CHAT.length) : "");

export function loadChat(id) {
  return attempt(() => checkedChat(load("chat." + id)), null);
}

export function loadChats() {
  const ids = attempt(() => Object.keys(localStorage), []).map(idOfKey).filter(Boolean);
  return ids.map(loadChat).filter(Boolean);
}

function checkedMessage(message) {
  if (!ROLES.includes(message?.role) || typeof message.content !== "string") {
    throw new Error("a message needs a role (user or assistant) and a text");
  }
  const { role, content } = message;
  if (role === "user") return { role, content };
  const { reasoning = "", stats, error, stop = "" } = message;
  const numbers = Object.entries(stats ?? {}).map(([name, value]) => [name, Number(value) || 0]);
  return {
    role,
    content,
    reasoning: String(reasoning),
    stats: Object.fromEntries(numbers),
    error: error ? checkedError(error) : null,
    stop: String(stop),
  };
}

function checkedError({ kind, detail, retryAfter }) {
  return { kind: String(kind), detail: String(detail), retryAfter: Number(retryAfter) || 0 };
}

/** A conversation of our form, whoever wrote it: the file of an import is a stranger's. */
function checkedChat(chat) {
  if (!chat || !Array.isArray(chat.messages)) throw new Error("a conversation needs messages");
  return {
    id: /^[a-z0-9]{1,40}$/.test(chat.id) ? chat.id : newId(),
    title: String(chat.title ?? ""),
    system: String(chat.system ?? ""),
    updated: Number(chat.updated) || Date.now(),
    messages: chat.messages.map(checkedMessage),
  };
}

export function exported(chats) {
  return JSON.stringify({ format: "m40llm-conversations", version: 1, conversations: chats }, null, 1);
}

/** The conversations of an exported text; throws in words. `chats`: those already here, by id. */
export function imported(text, chats) {
  const file = attempt(() => JSON.parse(text), null);
  if (!Array.isArray(file?.conversations)) {
    throw new Error("this is not a file that Export has written");
  }
  return file.conversations
    .map(checkedChat)
    .filter((chat) => JSON.stringify(chats.get(chat.id)) !== JSON.stringify(chat))
    .map((chat) => (chats.has(chat.id) ? { ...chat, id: newId() } : chat));
}
