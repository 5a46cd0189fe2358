// A model's markdown as DOM nodes. The text is a stranger's: it only ever becomes textContent, an
// address only after `safeAddress`. Repetitions in patterns are bounded and nesting is limited, so
// that no text makes the page slow. Not all of CommonMark: what models write.

const MAX_DEPTH = 6;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]{0,40})[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*?)[ \t#]*$/;
const RULE = /^ {0,3}([-*_])([ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const TABLE_RULE = /^ {0,3}\|?([ \t]*:?-+:?[ \t]*\|)+([ \t]*:?-+:?[ \t]*)?$/;
const INLINE = new RegExp(
  [
    /\\([!-/:-@[-`{-~])/, // 1: an escaped character
    /(`{1,3})([^`](?:[^\n]{0,1000}?[^`])?)\2(?!`)/, // 3: code
    /!?\[([^\]\n]{0,500})\]\(<?([^)\s<>]{1,2000})>?(?:\s+"[^"\n]{0,200}")?\)/, // 4, 5: a link
    /\*\*(?=\S)([^]{0,1999}?\S)\*\*(?!\*)/, // 6: bold
    /~~(?=\S)([^\n]{1,1000}?)~~/, // 7: struck
    /\*(?=[^\s*])([^*]{1,2000}?)\*(?!\*)/, // 8: italics
    /(?<!\w)_(?=[^\s_])([^_\n]{1,1000}?)_(?!\w)/, // 9: italics
    /\b(https?:\/\/[^\s<>"]{0,1999}[^\s<>".,;:!?)*\]'])/, // 10: a bare address
    /(\n)/, // 11: a line
  ].map((pattern) => pattern.source).join("|"),
  "g",
);

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const shown = new WeakMap(); // the source of each block that an element shows

/** Shows `text` in `root`; blocks that have not changed stay the same nodes, selection and all. */
export function render(root, text) {
  const before = shown.get(root) ?? [];
  const blocks = blocksOf(text);
  const sources = blocks.map((block) => block.kind + block.source);
  let same = 0;
  while (same < sources.length && sources[same] === before[same]) same += 1;
  while (root.childNodes.length > same) root.lastChild.remove();
  root.append(...blocks.slice(same).map((block) => nodeOf(block, 0)));
  shown.set(root, sources);
}

/** The blocks of a text, each with its kind and the lines that it came from. */
export function blocksOf(text) {
  const lines = text.split("\n");
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    const [kind, next] = blockAt(lines, at);
    if (kind) blocks.push({ kind, source: lines.slice(at, next).join("\n") });
    at = next;
  }
  return blocks;
}

function blockAt(lines, at) {
  const line = lines[at];
  if (!line.trim()) return ["", at + 1];
  if (FENCE.test(line)) return ["code", endOfFence(lines, at)];
  if (HEADING.test(line)) return ["heading", at + 1];
  if (RULE.test(line)) return ["rule", at + 1];
  if (QUOTE.test(line)) return ["quote", endWhile(lines, at, (next) => QUOTE.test(next))];
  if (ITEM.test(line)) return ["list", endOfList(lines, at)];
  if (isTable(lines, at)) return ["table", endWhile(lines, at, (next) => next.includes("|"))];
  const isText = (next, i) => next.trim() && !startsBlock(next) && !isTable(lines, i);
  return ["text", endWhile(lines, at, isText)];
}

const startsBlock = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((form) => form.test(line));
const isTable = (lines, at) => lines[at].includes("|") && TABLE_RULE.test(lines[at + 1] ?? "");

function endWhile(lines, at, test) {
  let end = at + 1;
  while (end < lines.length && test(lines[end], end)) end += 1;
  return end;
}

function endOfFence(lines, at) {
  const fence = lines[at].match(FENCE)[1];
  const isOpen = (line) => !(line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], ""));
  return Math.min(lines.length, endWhile(lines, at, isOpen) + 1);
}

/** A list goes on over blank lines as long as an item or an indented line follows. */
function endOfList(lines, at) {
  const isNumbered = /\d/.test(lines[at].match(ITEM)[2]);
  const goesOn = (line) => {
    const item = RULE.test(line) ? null : line.match(ITEM);
    return /^(\t| {2})/.test(line) || (item && /\d/.test(item[2]) === isNumbered);
  };
  return endWhile(lines, at, (line, i) => {
    if (line.trim()) return goesOn(line) || (lines[i - 1].trim() && !startsBlock(line));
    return goesOn(lines[i + 1] ?? "");
  });
}

const NODES = { code, heading, rule: () => element("hr"), quote, list, table, text: paragraph };

function nodeOf(block, depth) {
  return depth < MAX_DEPTH ? NODES[block.kind](block.source, depth) : paragraph(block.source);
}

const nodesOf = (text, depth) => blocksOf(text).map((block) => nodeOf(block, depth));

function paragraph(source) {
  return element("p", {}, ...inline(source));
}

function heading(source) {
  const [, marks, text] = source.match(HEADING);
  // The page's own headings are h1 and h2: an answer's begin below them.
  return element(`h${Math.min(6, marks.length + 2)}`, {}, ...inline(text));
}

function quote(source, depth) {
  const text = source.replace(/^ {0,3}> ?/gm, "");
  return element("blockquote", {}, ...nodesOf(text, depth + 1));
}

function code(source) {
  const lines = source.split("\n");
  const [, fence, language] = lines.shift().match(FENCE);
  if (lines.at(-1)?.trim().startsWith(fence)) lines.pop();
  const copy = element("button", { type: "button", className: "quiet", textContent: "Copy" });
  copy.dataset.act = "copy-code";
  const head = element("div", { className: "code-head" }, element("span", {}, language), copy);
  const body = element("pre", { tabIndex: 0 }, element("code", {}, lines.join("\n")));
  return element("div", { className: "code" }, head, body);
}

function list(source, depth) {
  const [, indent, mark] = source.match(ITEM);
  const items = [];
  for (const line of source.split("\n")) {
    const item = line.match(ITEM);
    if (item && item[1].length <= indent.length + 1) items.push([line.slice(item[0].length)]);
    else items.at(-1).push(line.replace(/^(\t| {1,4})/, ""));
  }
  const nodes = items.map((lines) => element("li", {}, ...itemNodes(lines.join("\n"), depth)));
  if (!/\d/.test(mark)) return element("ul", {}, ...nodes);
  return element("ol", { start: parseInt(mark, 10) }, ...nodes);
}

/** What an item holds: its first paragraph bare, so that lists stay tight. */
function itemNodes(text, depth) {
  const nodes = nodesOf(text, depth + 1);
  return nodes[0]?.tagName === "P" ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes;
}

function cellsOf(line) {
  const cells = line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/);
  return cells.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(source) {
  const [head, , ...rows] = source.split("\n").map(cellsOf);
  const row = (tag, cells) =>
    element("tr", {}, ...head.map((_, i) => element(tag, {}, ...inline(cells[i] ?? ""))));
  const body = element("tbody", {}, ...rows.map((cells) => row("td", cells)));
  const whole = element("table", {}, element("thead", {}, row("th", head)), body);
  return element("div", { className: "table", tabIndex: 0 }, whole);
}

/** The nodes of running text. */
export function inline(text, depth = 0) {
  if (depth >= MAX_DEPTH) return [text];
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > at) nodes.push(text.slice(at, match.index));
    nodes.push(...inlineNodes(match, depth + 1));
    at = match.index + match[0].length;
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}

function inlineNodes(match, depth) {
  const [whole, escaped, , codeText, label, address, bold, struck, star, under, bare, line] = match;
  if (escaped) return [escaped];
  if (codeText) return [element("code", {}, codeText.replace(/^ (.+) $/, "$1"))];
  if (address) return [link(address, inline(label, depth), whole)];
  if (bold) return [element("strong", {}, ...inline(bold, depth))];
  if (struck) return [element("del", {}, ...inline(struck, depth))];
  if (bare) return [link(bare, [bare], whole)];
  if (line) return [element("br")];
  return [element("em", {}, ...inline(star ?? under, depth))];
}

/** The address if a click on it can only open a page or a mail, else "". */
export function safeAddress(address) {
  try {
    const url = new URL(address); // throws for a relative one: a model knows none of our paths
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : "";
  } catch {
    return "";
  }
}

function link(address, label, whole) {
  const href = safeAddress(address);
  if (!href) return document.createTextNode(whole);
  const properties = { href, title: href, target: "_blank", rel: "noopener noreferrer" };
  return element("a", properties, ...(label.length ? label : [href]));
}
