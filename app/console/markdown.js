// Markdown as elements. Whatever an answer holds becomes text, or one of the few elements made here and in inline.js;
// markup in it stays text. Linear in the answer's length.

import { h } from "./dom.js";
import { inline } from "./inline.js";

const DEEPEST = 8; // lists and quotes in each other
const LONGEST_MARK = 200; // characters of a line that may be a rule, a fence or a heading's end
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}(?:(?:- *){3,}|(?:\* *){3,}|(?:_ *){3,})$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const ALIGNED = [[/^:-+:$/, "middle"], [/^-+:$/, "number"]]; // a column's mark -> the class of its cells
const BOX = /^\[([ xX])\] /;

/** Renders a growing text into `node`; what did not change since the last call is left as it is. */
export class Markdown {
  constructor(node) {
    this.node = node;
    this.blocks = [];
  }

  update(text) {
    const blocks = blocksOf(text.split("\n"));
    grow(this.node, this.blocks, blocks);
    for (const element of this.node.children) element.dir ||= "auto"; // each reads as its first letter does
    this.blocks = blocks;
  }
}

// A block is {source, make}: the lines that it is made of, and a function that makes its element. One that may get more
// of the same, such as a list, is {source, kind, make, parts}: `make` leaves its parts out, which are blocks too, and
// blocks of equal kinds differ in their parts alone.

/** Makes the children of `node`, which are `old`, into `blocks`. */
function grow(node, old, blocks) {
  let same = 0;
  while (same < blocks.length && old[same]?.source === blocks[same].source) same++;
  const [before, after] = [old[same], blocks[same]];
  if (before?.kind && before.kind === after?.kind) {
    grow(holder(node.childNodes[same]), before.parts, after.parts);
    same++;
  }
  while (node.childNodes.length > same) node.lastChild.remove();
  node.append(...blocks.slice(same).map(built));
}

function built(block) {
  const element = block.make();
  if (block.parts) holder(element).append(...block.parts.map(built));
  return element;
}

/** What in `element` holds the elements of its parts. */
const holder = (element) => element.querySelector(":scope > table > tbody") ?? element;

const isRule = (line) => line.length < LONGEST_MARK && RULE.test(line);
const blank = (line) => line.trim() === "";
const indentOf = (line) => line.length - line.trimStart().length;

function blocksOf(lines, depth = 0) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (blank(lines[at])) {
      at++;
      continue;
    }
    const [end, block] = blockAt(lines, at, depth);
    blocks.push({ source: lines.slice(at, end).join("\n"), ...block });
    at = end;
  }
  return blocks;
}

const KINDS = [fence, heading, rule, quote, list, table, paragraph]; // the last takes any line

/** Where the block that begins at `at` ends, and what it is. */
function blockAt(lines, at, depth) {
  for (const kind of KINDS) {
    const found = kind(lines, at, depth);
    if (found) return found;
  }
  throw new Error("no kind took the line");
}

function fence(lines, at) {
  const [, mark, language] = FENCE.exec(lines[at]) ?? [];
  if (!mark || (mark[0] === "`" && lines[at].trim().slice(mark.length).includes("`"))) return null;
  let end = at + 1;
  while (end < lines.length && !closes(lines[end], mark)) end++;
  return [Math.min(end + 1, lines.length), { make: () => codeBlock(lines.slice(at + 1, end).join("\n"), language) }];
}

function closes(line, mark) {
  const text = line.trim();
  return text.length >= mark.length && text.length < LONGEST_MARK && text === mark[0].repeat(text.length);
}

function codeBlock(code, language) {
  const copy = h("button", { type: "button", class: "quiet", "data-copy": "code" }, "Copy");
  return h("figure", { class: "code", dir: "ltr" },
    h("figcaption", {}, language || "text", copy), h("pre", { tabindex: 0 }, h("code", {}, code)));
}

function heading(lines, at) {
  const [, marks, text] = HEADING.exec(lines[at]) ?? [];
  if (!marks) return null;
  const name = `h${Math.min(6, marks.length + 2)}`; // below the page's own headings
  return [at + 1, { make: () => h(name, {}, ...inline(text.replace(/ #{1,6} *$/, ""))) }];
}

function rule(lines, at) {
  return isRule(lines[at]) ? [at + 1, { make: () => h("hr") }] : null;
}

function quote(lines, at, depth) {
  if (depth >= DEEPEST || !QUOTE.test(lines[at])) return null;
  let end = at + 1;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inside = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [end, { kind: "quote", make: () => h("blockquote"), parts: blocksOf(inside, depth + 1) }];
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  if (depth >= DEEPEST || !first || isRule(lines[at])) return null;
  const ordered = /\d/.test(first[2]);
  const items = [];
  let inner = 0; // where an item's own text begins
  let end = at;
  while (end < lines.length) {
    const line = lines[end];
    const item = ITEM.exec(line);
    const outside = indentOf(line) < Math.max(2, inner);
    if (item && outside && !isRule(line) && /\d/.test(item[2]) === ordered) {
      inner = Math.min(item[1].length + item[2].length + 1, 8);
      items.push([item[3]]);
    } else if (blank(line)) {
      if (!goesOn(lines, end + 1, ordered, inner)) break;
      items.at(-1).push("");
    } else if (!outside) {
      items.at(-1).push(line.slice(Math.min(indentOf(line), inner)));
    } else if (item || blank(lines[end - 1]) || startsOther(line)) {
      break;
    } else {
      items.at(-1).push(line.trim());
    }
    end++;
  }
  const start = ordered ? Number.parseInt(first[2], 10) : null;
  return [end, {
    kind: `list ${start}`,
    make: () => h(ordered ? "ol" : "ul", { start: start === 1 ? null : start }),
    parts: items.map((inside) => ({ source: inside.join("\n"), make: () => listItem(inside, depth + 1) })),
  }];
}

/** Whether the list has more after a blank line. */
function goesOn(lines, at, ordered, inner) {
  while (at < lines.length && blank(lines[at])) at++;
  if (at === lines.length) return false;
  const item = ITEM.exec(lines[at]);
  if (indentOf(lines[at]) >= Math.max(2, inner)) return true;
  return item !== null && /\d/.test(item[2]) === ordered && !isRule(lines[at]);
}

const startsOther = (line) => FENCE.test(line) || HEADING.test(line) || QUOTE.test(line) || isRule(line);

/** Its first paragraph is its text alone. */
function listItem(lines, depth) {
  const first = lines[0].replace(BOX, (_, mark) => (mark === " " ? "☐ " : "☑ "));
  const [start, ...others] = blocksOf([first, ...lines.slice(1)], depth).map(built);
  return h("li", {}, ...(start?.localName === "p" ? start.childNodes : [start ?? ""]), ...others);
}

function table(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return null;
  const marks = cells(lines[at + 1]);
  if (marks.length !== cells(lines[at]).length || !marks.every((mark) => /^:?-+:?$/.test(mark))) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  const classes = marks.map((mark) => ALIGNED.find(([pattern]) => pattern.test(mark))?.[1] ?? null);
  const row = (line, name) => h("tr", {}, ...cells(line).slice(0, marks.length).map((text, i) =>
    h(name, { class: classes[i] }, ...inline(text))));
  return [end, {
    kind: `table ${lines.slice(at, at + 2).join("\n")}`,
    make: () => h("div", { class: "scroll", tabindex: 0 },
      h("table", {}, h("thead", {}, row(lines[at], "th")), h("tbody"))),
    parts: lines.slice(at + 2, end).map((line) => ({ source: line, make: () => row(line, "td") })),
  }];
}

/** Of a table's line; a bar that is text is written `\\|`. */
const cells = (line) => line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "").split(/(?<!\\)\|/)
  .map((cell) => cell.trim().replaceAll("\\|", "|"));

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !blank(lines[end]) && !startsOther(lines[end]) && !ITEM.test(lines[end])) end++;
  return [end, { make: () => h("p", {}, ...inline(lines.slice(at, end).map((line) => line.trim()).join("\n"))) }];
}
