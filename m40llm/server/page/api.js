// The server's OpenAI endpoints, by relative URLs: a reverse proxy may serve us under any path.

/** Why there is no (whole) answer: a kind that `inWords` knows, and the server's own words. */
export class ChatError extends Error {
  constructor(kind, detail = "", retryAfter = 0) {
    super(detail || kind);
    Object.assign(this, { kind, detail, retryAfter });
  }
}

const WORDS = {
  __proto__: null,
  key: ["The server wants an API key.", "Enter the key that its owner gave you."],
  full: ["The server is full just now.", "Nothing is lost: try again"],
  large: ["This is too large for the server.", "Shorten the message, or start a new conversation."],
  context: [
    "The conversation no longer fits the model's context.",
    "Start a new conversation, edit an earlier message, or lower the token limit in the settings.",
  ],
  unready: ["The server cannot answer just now.", "It may be starting or shutting down. Try again"],
  late: ["The server gave up: this took longer than it allows.", "Try again, or ask for less."],
  refused: ["The server refused this request.", "See what it says; the settings may be the cause."],
  broken: ["Something failed in the server.", "Try again; if it stays so, its log says more."],
  network: [
    "The server cannot be reached.",
    "Check the network, and that the server still runs. Your message is kept: try again.",
  ],
  lost: ["The connection broke in the middle.", "What has come is kept. Try again when it is back."],
  cut: ["The answer ended too early.", "The server closed the connection. Try again."],
};

/** {title, advice} for a person. */
export function inWords({ kind, retryAfter }) {
  const [title, advice] = WORDS[kind] ?? WORDS.broken;
  if (kind !== "full" && kind !== "unready") return { title, advice };
  return { title, advice: advice + (retryAfter ? ` in ${retryAfter} s.` : " in a moment.") };
}

// Codes tell more than a status, and an error in mid-stream has no status of its own.
const KIND_OF_CODE = {
  __proto__: null,
  context_length_exceeded: "context", prompt_too_long: "context", queue_full: "full",
  shutting_down: "unready", time_limit: "late",
};
const KIND_OF_STATUS = {
  401: "key", 403: "key", 408: "late", 413: "large", 429: "full", 502: "unready", 503: "unready",
  504: "late",
};

function kindOf(status, error) {
  const kind = KIND_OF_CODE[error.code] ?? KIND_OF_STATUS[status];
  return kind ?? (status >= 500 ? "broken" : "refused");
}

/** Seconds of a Retry-After header, which may also be a date. */
function secondsOf(header) {
  if (!header) return 0;
  const seconds = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Math.max(0, Math.ceil(seconds)) || 0;
}

async function failureOf(response) {
  const text = await response.text().catch(() => "");
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    // A proxy's page of HTML: its status says enough.
  }
  const detail = typeof error.message === "string" ? error.message : `HTTP ${response.status}`;
  const retryAfter = secondsOf(response.headers.get("retry-after"));
  return new ChatError(kindOf(response.status, error), detail, retryAfter);
}

async function request(url, key, options = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (options.body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(url, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ChatError("network", error.message);
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

/** The ids of the models that the server offers. */
export async function listModels(key) {
  const answer = await (await request("v1/models", key)).json().catch(() => null);
  return (answer?.data ?? []).map((model) => String(model.id));
}

/** Chunks of one answer as they come; throws a ChatError, or an AbortError after `signal`. */
export async function* streamChat(body, key, signal) {
  const options = { method: "POST", signal, body: JSON.stringify(body) };
  const response = await request("v1/chat/completions", key, options);
  let isWhole = false;
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    if (chunk.error) throw new ChatError(kindOf(500, chunk.error), chunk.error.message);
    isWhole ||= Boolean(chunk.choices?.[0]?.finish_reason);
    yield chunk;
  }
  if (!isWhole) throw new ChatError("cut");
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ChatError("broken", `not JSON: ${data.slice(0, 200)}`);
  }
}

/** The data of each server-sent event, wherever the network cut the bytes. */
export async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  const split = eventSplitter();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      yield* split(done ? "\n\n" : value);
      if (done) return;
    }
  } catch (error) {
    // A fetch that breaks says TypeError; our own errors and an abort go on as they are.
    throw error instanceof TypeError ? new ChatError("lost", error.message) : error;
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** A function that takes text in any pieces and gives the events that it completed. */
export function eventSplitter() {
  let rest = "";
  let data = [];
  return function* split(text) {
    // A carriage return at the very end may be half of a CRLF: it waits for what follows.
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      if (line !== "" || !data.length) continue;
      yield data.join("\n");
      data = [];
    }
  };
}
