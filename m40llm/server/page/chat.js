// One answer: the request that asks for it, and how it grows. No DOM here.

import { streamChat } from "./api.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];
// Those of `m40llm chat`. OpenAI's own, which the server has, draw from every token there is: a small
// model soon says one that makes no sense.
const DEFAULTS = { temperature: 0.8, top_p: 0.95, top_k: 40, min_p: 0.05 };

/** The body of a request; of settings left blank, only those are sent that have a default here. */
export function requestBody(chat, model, settings) {
  const body = { model, messages: requestMessages(chat), stream: true };
  body.stream_options = { include_usage: true };
  for (const name of NUMBERS) {
    const value = settings[name] || DEFAULTS[name]; // a text: "0" is one
    if (value !== undefined && value !== "") body[name] = Number(value);
  }
  // One a line; a newline itself is written as \n.
  const stop = (settings.stop ?? "").split("\n").filter(Boolean);
  if (stop.length) body.stop = stop.map((text) => text.replaceAll("\\n", "\n"));
  return body;
}

/** Roles by turns, as many templates demand: empty answers go, neighbours of a role are joined. */
function requestMessages(chat) {
  const messages = chat.system.trim() ? [{ role: "system", content: chat.system }] : [];
  for (const { role, content } of chat.messages) {
    const last = messages.at(-1);
    if (role === "assistant" && !content) continue;
    if (last?.role === role) last.content += "\n\n" + content;
    else messages.push({ role, content });
  }
  return messages;
}

/** Reads one answer into `message`, telling `onChange` of every change. Never throws.
 *
 * body   gives the request's body, and may fail as the server may
 */
export async function readAnswer(message, body, key, signal, onChange) {
  const clock = { start: performance.now(), first: 0, last: 0, nChunks: 0, usage: null };
  try {
    for await (const chunk of streamChat(await body(), key, signal)) {
      if (addChunk(message, chunk)) tick(clock);
      clock.usage = chunk.usage ?? clock.usage;
      message.stats = statsOf(clock);
      onChange();
    }
  } catch (error) {
    if (signal.aborted) message.stop = "stopped";
    else message.error = plainError(error);
  }
}

/** True where the chunk brought text. */
function addChunk(message, chunk) {
  const choice = chunk.choices?.[0];
  const text = choice?.delta?.content ?? "";
  const reasoning = choice?.delta?.reasoning_content ?? "";
  message.content += text;
  message.reasoning += reasoning;
  if (choice?.finish_reason) message.stop = choice.finish_reason;
  return Boolean(text || reasoning);
}

function tick(clock) {
  clock.last = performance.now();
  clock.first ||= clock.last;
  clock.nChunks += 1;
}

/** Times as this browser saw them; tokens are chunks until the server has counted. */
function statsOf({ start, first, last, nChunks, usage }) {
  const nTokens = usage?.completion_tokens ?? nChunks;
  return {
    nTokens,
    nPrompt: usage?.prompt_tokens ?? 0,
    nCached: usage?.prompt_tokens_details?.cached_tokens ?? 0,
    firstMs: first ? first - start : 0,
    perSecond: last > first ? ((nTokens - 1) * 1000) / (last - first) : 0,
  };
}

/** What of an error outlives a reload. */
function plainError({ kind = "broken", detail, message, retryAfter = 0 }) {
  return { kind, detail: detail ?? message ?? "", retryAfter };
}
