// What stands in a paragraph of Markdown, as text and elements. An image becomes a link to it, and a link leads to the
// web or a mailbox. Linear in the text's length.

import { h } from "./dom.js";

const FORMULAS = { "\\(": "\\)", "\\[": "\\]", "$$": "$$" }; // in TeX: shown as they are written
const LINK =
  /!?\[([^[\]\n]{0,300})\]\(\s*<?((?:[^\s()<>]|\([^\s()<>]{0,300}\)){1,2000})>?(?:\s+"[^"\n]{0,300}")?\s*\)/y;
const BARE = /https?:\/\/(?:[^\s<>"'`()\]]|\([^\s<>"'`()\]]{0,300}\)){1,2000}/y;
const ANGLED = /<(https?:\/\/[^\s<>]{1,2000})>/y;
const PUNCTUATION = /[!-/:-@[-`{-~]/;

/** The nodes of a paragraph's text: emphasis, code, links, line breaks. */
export function inline(text) {
  const levels = [{ mark: "", nodes: [] }]; // marks that are open, outermost first
  const missing = new Set(); // ends that do not come any more: of formulas, and lengths of runs of backticks
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
    const formula = char === "\\" || char === "$" ? formulaAt(text, at, missing) : "";
    if (formula) {
      put(h("code", { class: "formula" }, formula), formula.length);
    } else if (char === "\\" && PUNCTUATION.test(text[at + 1] ?? "")) {
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
      const open = levels.at(-1).mark;
      const mark = char === "~" ? "~~" : open === char && run === 3 ? char : char.repeat(Math.min(run, 2));
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
    } else if (char === "<" && matchAt(ANGLED, text, at)) {
      const [whole, to] = matchAt(ANGLED, text, at);
      put(link(to, to), whole.length);
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

/** The formula in TeX that begins at `at`, as it is written; "" where none does. Notes in `missing` what no formula
 * ends with any more. */
function formulaAt(text, at, missing) {
  const end = FORMULAS[text.slice(at, at + 2)];
  if (!end || missing.has(end)) return "";
  const close = text.indexOf(end, at + 2);
  if (close < 0) missing.add(end);
  return close > at + 2 ? text.slice(at, close + 2) : "";
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
