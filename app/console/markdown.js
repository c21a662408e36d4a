// Markdown as elements. Whatever an answer holds becomes text, or one of the few elements made here; markup in it stays
// text, an image becomes a link to it, and a link leads to the web or a mailbox. Linear in the answer's length.

import { h } from "./dom.js";

const DEEPEST = 8; // lists and quotes in each other
const LONGEST_MARK = 200; // characters of a line that may be a rule, a fence or a heading's end
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}(?:(?:- *){3,}|(?:\* *){3,}|(?:_ *){3,})$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const LINK = /!?\[([^[\]\n]{0,300})\]\(\s*<?([^\s()<>]{1,2000})>?(?:\s+"[^"\n]{0,300}")?\s*\)/y;
const BARE = /https?:\/\/[^\s<>"'`)\]]{1,2000}/y;
const PUNCTUATION = /[!-/:-@[-`{-~]/;

/** Renders a growing text into `node`; what did not change since the last call is left as it is. */
export class Markdown {
  constructor(node) {
    this.node = node;
    this.sources = [];
  }

  update(text) {
    const blocks = blocksOf(text.split("\n"));
    let same = 0;
    while (same < blocks.length && this.sources[same] === blocks[same].source) same++;
    while (this.node.childNodes.length > same) this.node.lastChild.remove();
    for (const block of blocks.slice(same)) this.node.append(block.make());
    this.sources = blocks.map((block) => block.source);
  }
}

const isRule = (line) => line.length < LONGEST_MARK && RULE.test(line);
const blank = (line) => line.trim() === "";
const indentOf = (line) => line.length - line.trimStart().length;

/** `lines` as blocks: the lines that each is made of, and a function that makes its element. */
function blocksOf(lines, depth = 0) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (blank(lines[at])) {
      at++;
      continue;
    }
    const [end, make] = blockAt(lines, at, depth);
    blocks.push({ source: lines.slice(at, end).join("\n"), make });
    at = end;
  }
  return blocks;
}

const KINDS = [fence, heading, rule, quote, list, table, paragraph]; // the last takes any line

/** Where the block that begins at `at` ends, and what makes its element. */
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
  return [Math.min(end + 1, lines.length), () => codeBlock(lines.slice(at + 1, end).join("\n"), language)];
}

function closes(line, mark) {
  const text = line.trim();
  return text.length >= mark.length && text.length < LONGEST_MARK && text === mark[0].repeat(text.length);
}

function codeBlock(code, language) {
  const copy = h("button", { type: "button", class: "quiet", "data-copy": "code" }, "Copy");
  return h("figure", { class: "code" },
    h("figcaption", {}, language || "text", copy), h("pre", { tabindex: 0 }, h("code", {}, code)));
}

function heading(lines, at) {
  const [, marks, text] = HEADING.exec(lines[at]) ?? [];
  // Below the page's own headings.
  return marks ? [at + 1, () => h(`h${Math.min(6, marks.length + 2)}`, {}, ...inline(text.replace(/ #{1,6} *$/, "")))]
    : null;
}

function rule(lines, at) {
  return isRule(lines[at]) ? [at + 1, () => h("hr")] : null;
}

function quote(lines, at, depth) {
  if (depth >= DEEPEST || !QUOTE.test(lines[at])) return null;
  let end = at + 1;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inside = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [end, () => h("blockquote", {}, ...elementsOf(inside, depth + 1))];
}

const elementsOf = (lines, depth) => blocksOf(lines, depth).map((block) => block.make());

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
  return [end, () => h(ordered ? "ol" : "ul", { start: start === 1 ? null : start },
    ...items.map((inside) => h("li", {}, ...tight(inside, depth + 1))))];
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

/** An item that is one paragraph is its text alone. */
function tight(lines, depth) {
  const elements = elementsOf(lines, depth);
  return elements[0]?.localName === "p" ? [...elements[0].childNodes, ...elements.slice(1)] : elements;
}

function table(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return null;
  const marks = cells(lines[at + 1]);
  if (marks.length !== cells(lines[at]).length || !marks.every((mark) => /^:?-+:?$/.test(mark))) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  const row = (line, name) =>
    h("tr", {}, ...cells(line).slice(0, marks.length).map((text) => h(name, {}, ...inline(text))));
  return [end, () => h("div", { class: "scroll", tabindex: 0 }, h("table", {},
    h("thead", {}, row(lines[at], "th")),
    h("tbody", {}, ...lines.slice(at + 2, end).map((line) => row(line, "td")))))];
}

const cells = (line) => line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((cell) => cell.trim());

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !blank(lines[end]) && !startsOther(lines[end]) && !ITEM.test(lines[end])) end++;
  return [end, () => h("p", {}, ...inline(lines.slice(at, end).map((line) => line.trim()).join("\n")))];
}

/** One line of thought: emphasis, code, links, line breaks. */
function inline(text) {
  const levels = [{ mark: "", nodes: [] }]; // marks that are open, outermost first
  const missing = new Set(); // lengths of runs of backticks that no other run closes any more
  let plain = "";
  let at = 0;

  const flush = () => {
    if (plain) levels.at(-1).nodes.push(plain);
    plain = "";
  };
  const unfinished = () => { // an opening mark that nothing closed is text
    const { mark, nodes } = levels.pop();
    levels.at(-1).nodes.push(mark, ...nodes);
  };
  const put = (node, length) => {
    flush();
    levels.at(-1).nodes.push(node);
    at += length;
  };

  while (at < text.length) {
    const char = text[at];
    if (char === "\\" && PUNCTUATION.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
    } else if (char === "\n") {
      put(h("br"), 1);
    } else if (char === "`") {
      const run = runAt(text, at, "`");
      const close = missing.has(run) ? -1 : closingTicks(text, at + run, run);
      if (close < 0) {
        missing.add(run);
        plain += text.slice(at, at + run);
        at += run;
      } else {
        put(h("code", {}, text.slice(at + run, close).replace(/^ (.+) $/s, "$1")), close + run - at);
      }
    } else if (char === "*" || char === "_" || (char === "~" && text[at + 1] === "~")) {
      const run = runAt(text, at, char);
      const mark = char === "~" ? "~~" : char.repeat(Math.min(run, 2));
      const [canOpen, canClose] = flanks(text, at, run, char);
      if (run <= 3 && canClose && levels.some((level) => level.mark === mark)) {
        flush();
        while (levels.at(-1).mark !== mark) unfinished();
        const { nodes } = levels.pop();
        put(h({ "**": "strong", "__": "strong", "~~": "del" }[mark] ?? "em", {}, ...nodes), mark.length);
      } else if (run <= 3 && canOpen && levels.length < 16) {
        flush();
        levels.push({ mark, nodes: [] });
        at += mark.length;
      } else {
        plain += text.slice(at, at + (run <= 3 ? mark.length : run));
        at += run <= 3 ? mark.length : run;
      }
    } else if (char === "[" || (char === "!" && text[at + 1] === "[")) {
      const found = matchAt(LINK, text, at);
      if (found) put(link(found[2], found[1] || found[2]), found[0].length);
      else {
        plain += char;
        at++;
      }
    } else if (char === "h" && (text.startsWith("http://", at) || text.startsWith("https://", at))) {
      const found = matchAt(BARE, text, at)?.[0].replace(/[.,;:!?]+$/, "");
      if (found) put(link(found, found), found.length);
      else {
        plain += char;
        at++;
      }
    } else {
      plain += char;
      at++;
    }
  }
  flush();
  while (levels.length > 1) unfinished();
  return levels[0].nodes;
}

function runAt(text, at, char) {
  let end = at;
  while (text[end] === char) end++;
  return end - at;
}

function closingTicks(text, from, run) {
  for (let at = text.indexOf("`", from); at >= 0; at = text.indexOf("`", at)) {
    const found = runAt(text, at, "`");
    if (found === run) return at;
    at += found;
  }
  return -1;
}

/** Whether the run of marks at `at` may open emphasis, and close it: it touches a word there. */
function flanks(text, at, run, char) {
  const before = text[at - 1] ?? " ";
  const after = text[at + run] ?? " ";
  const opens = !/\s/.test(after);
  const closes = !/\s/.test(before);
  if (char !== "_") return [opens, closes];
  return [opens && !/\w/.test(before), closes && !/\w/.test(after)]; // snake_case is no emphasis
}

function matchAt(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

function link(to, text) {
  const protocol = URL.canParse(to) ? new URL(to).protocol : "";
  if (!["http:", "https:", "mailto:"].includes(protocol)) return h("span", { title: to }, text);
  return h("a", { href: to, target: "_blank", rel: "noopener noreferrer", title: to }, text);
}
