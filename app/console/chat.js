// The view of the conversation: what is asked, the answer as it comes, what it cost, and how to ask it elsewhere.

import { Refusal, address, ask, json, key } from "./api.js";
import { $, h, say } from "./dom.js";
import { Markdown } from "./markdown.js";
import * as pictures from "./pictures.js";
import { UNREACHABLE, answers, lookNow, onLook, seen } from "./poll.js";
import { asCurl, asPython } from "./snippets.js";
import { events } from "./sse.js";
import { seconds } from "./state.js";

// Small models answer these well; the first stands in the README too.
const SUGGESTIONS = [
  "How do plants make food?", "What is gravity?", "Explain what a computer is in two sentences."];
const ENDS = { length: "cut at the most tokens", abort: "ended by the server" };

const turns = []; // {question, pictures, answer, failed}, oldest first
let running = null; // the AbortController of the answer that is coming
let asksForKey = () => {}; // told why
let keyServes = () => {};

export function start(onKeyWanted, onKeyServes) {
  asksForKey = onKeyWanted;
  keyServes = onKeyServes;
  $("suggestions").append(...SUGGESTIONS.map((text) =>
    h("button", { type: "button", onclick: () => submit(text) }, text)));
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit($("question").value.trim());
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit($("question").value.trim());
    }
  });
  $("question").addEventListener("input", fit);
  pictures.start();
  $("stop").addEventListener("click", stop);
  $("new-chat").addEventListener("click", clear);
  $("settings").addEventListener("input", noteSettings);
  $("turns").addEventListener("click", copyCode);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) stop();
  });
  onLook(refresh);
  refresh();
}

export const stop = () => running?.abort();

function clear() {
  stop();
  turns.length = 0;
  $("turns").replaceChildren();
  refresh();
  $("question").focus();
}

// What can be done now

let models = null; // names; null: not known yet

/** With another key there may be other models. */
export function forgetModels() {
  models = null;
}

async function refresh() {
  $("welcome").hidden = $("turns").childElementCount > 0;
  $("new-chat").hidden = !$("turns").childElementCount;
  $("stop").hidden = !running;
  $("send").hidden = Boolean(running);
  $("send").disabled = !answers();
  for (const button of $("suggestions").children) button.disabled = !answers() || Boolean(running);
  const note = document.querySelector(".waiting");
  if (note && note.textContent !== waiting()) {
    say(note, waiting());
    toEnd();
  }
  if (!answers() && !running) models = null; // there may be others when it answers again
  if (answers() && models === null) await loadModels();
}

const wantKey = () =>
  asksForKey(key.get() ? "The server does not know this key." : "This server needs an API key.");

async function loadModels() {
  models = [];
  try {
    const { data } = await json("v1/models");
    models = data.map((card) => card.id);
    pictures.allow(data.some((card) => card.input_modalities?.includes("image")));
    const chosen = $("model").value;
    $("model").replaceChildren(...models.map((name) => h("option", { selected: name === chosen }, name)));
    say($("trouble"), "");
    keyServes();
  } catch (error) {
    if (error.status === 401) wantKey();
    else say($("trouble"), error.message);
    if ([0, 503].includes(error.status)) models = null; // just not there again
  }
  noteSettings();
}

function noteSettings() {
  const notes = [
    models?.length ? $("model").value : "",
    $("temperature").value && `temperature ${$("temperature").value}`,
    $("max-tokens").value && `at most ${$("max-tokens").value} tokens`,
    $("system").value.trim() && "system prompt",
  ].filter(Boolean);
  $("settings-note").textContent = notes.join(" · ");
}

/** The field as high as what is in it. */
function fit() {
  const field = $("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

// Asking

function requestOf(question, shown) {
  const said = turns.filter((turn) => !turn.failed).flatMap((turn) => [
    { role: "user", content: pictures.contentOf(turn.question, turn.pictures) },
    { role: "assistant", content: turn.answer }]);
  const system = $("system").value.trim();
  const first = system ? [{ role: "system", content: system }] : [];
  const request = $("model").value ? { model: $("model").value } : {};
  request.messages = [...first, ...said, { role: "user", content: pictures.contentOf(question, shown) }];
  if ($("temperature").value) request.temperature = Number($("temperature").value);
  if ($("max-tokens").value) request.max_tokens = Number($("max-tokens").value);
  return { ...request, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
}

async function submit(question) {
  if (!question || running || !answers()) return;
  const fields = [$("temperature"), $("max-tokens")];
  const wrong = fields.find((field) => !field.checkValidity());
  if (wrong) {
    $("settings").open = true;
    wrong.reportValidity();
    return;
  }
  const shown = pictures.take();
  const request = requestOf(question, shown);
  const turn = { question, pictures: shown, answer: "", failed: false };
  const view = new TurnView(question, shown, request);
  $("turns").append(...view.nodes);
  if ($("question").value.trim() === question) $("question").value = "";
  fit();
  running = new AbortController();
  refresh();
  toEnd();
  try {
    await follow(request, turn, view, running.signal);
  } catch (error) {
    if (error.name === "AbortError") {
      view.end = "stopped";
    } else {
      view.fail(error instanceof Refusal ? error.message : "The connection broke before the answer was whole.");
      if (error.status === 401) wantKey();
      turn.failed = !turn.answer;
      if (turn.failed && !$("question").value) {
        $("question").value = question;
        pictures.giveBack(shown);
        fit();
      }
    }
  }
  if (!turn.answer) turn.failed = true;
  if (view.answer.isConnected) turns.push(turn); // else a new chat has begun
  running = null;
  view.close(turn.answer);
  refresh();
  lookNow();
  toEnd();
  // The button that was pressed is hidden now; a reader who is elsewhere stays there.
  if (document.activeElement === document.body) $("question").focus({ preventScroll: true });
}

/** Reads the answer into `turn` and `view`. Throws Refusal, AbortError, TypeError where the connection breaks. */
async function follow(request, turn, view, signal) {
  view.begun = performance.now();
  const reply = await ask("v1/chat/completions", { body: request, signal });
  let done = false;
  for await (const data of events(reply.body)) {
    if (data === "[DONE]") {
      done = true;
      continue;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refusal(chunk.error.message, chunk.error.code);
    if (chunk.usage) view.usage = chunk.usage;
    const [choice] = chunk.choices;
    if (!choice) continue;
    const { content, reasoning, reasoning_content: older } = choice.delta;
    if (content || reasoning || older) {
      view.lastAt = performance.now();
      view.firstAt ??= view.lastAt;
    }
    view.think(reasoning ?? older ?? "");
    turn.answer += content ?? "";
    view.write(turn.answer);
    if (choice.finish_reason) view.end = ENDS[choice.finish_reason] ?? "";
  }
  if (!done) throw new Refusal("The connection ended before the answer did.", 0);
}

/** Follows the text, unless the reader has scrolled away from its end. */
function toEnd() {
  if ($("chat-view").hidden) return;
  const page = document.scrollingElement;
  if (page.scrollHeight - page.scrollTop - page.clientHeight < 250) page.scrollTop = page.scrollHeight;
}

/** Why nothing comes, where that is known. */
function waiting() {
  const { status, phase, fraction } = seen.readiness ?? {};
  if (status === UNREACHABLE) return "The server cannot be reached at the moment.";
  return status === "restarting"
    ? `The engine is starting again (${phase}, ${Math.floor(fraction * 100)}%); the answer goes on after that.` : "";
}

class TurnView {
  constructor(question, shown, request) {
    Object.assign(this, { request, usage: null, begun: 0, firstAt: null, lastAt: null, end: "" });
    this.text = h("div", { class: "text" });
    this.markdown = new Markdown(this.text);
    this.thoughts = h("div", { class: "thoughts", dir: "auto" });
    this.thinking = h("details", { class: "thinking", hidden: true }, h("summary", {}, "Thinking"), this.thoughts);
    this.paused = h("p", { class: "note waiting", hidden: true });
    this.failure = h("p", { class: "failure", role: "alert", hidden: true });
    this.facts = h("p", { class: "facts" });
    this.answer = h("article", { class: "answer", "aria-label": "Answer", "aria-busy": "true" },
      this.thinking, this.text, this.paused, this.failure, h("footer", {}, this.facts));
    this.nodes = [h("article", { class: "question", dir: "auto", "aria-label": "Question" },
      ...shown.map((picture, i) => pictures.shown(picture, `Picture ${i + 1}`)), question), this.answer];
    this.due = 0;
  }

  write(text) {
    this.pending = text;
    this.due ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.due = 0;
    this.markdown.update(this.pending);
    this.facts.textContent = this.told();
    toEnd();
  }

  think(text) {
    if (!text) return;
    this.thinking.hidden = false;
    this.thoughts.append(text);
  }

  fail(message) {
    say(this.failure, message);
  }

  /** The answer is as long as it gets. */
  close(answer) {
    cancelAnimationFrame(this.due);
    this.markdown.update(answer);
    this.facts.textContent = this.told();
    this.paused.remove();
    this.answer.removeAttribute("aria-busy");
    const url = address("v1");
    const keyed = Boolean(key.get());
    const copies = [
      ["Copy as curl", () => asCurl(this.request, url, keyed)],
      ["Copy as Python", () => asPython(this.request, url, keyed)],
    ];
    if (answer) copies.unshift(["Copy", () => answer]);
    this.facts.after(h("p", { class: "copies" }, ...copies.map(([name, text]) =>
      h("button", { type: "button", class: "quiet", onclick: (event) => copy(event.target, text()) }, name))));
  }

  told() {
    const { usage, begun, firstAt, lastAt, end } = this;
    const written = usage?.completion_tokens ?? 0;
    const facts = [];
    if (usage) facts.push(`${written} token${written === 1 ? "" : "s"}`);
    const took = (lastAt - firstAt) / 1000; // after the first token
    if (written > 1 && took > 0) facts.push(`${((written - 1) / took).toFixed(1)} tokens/s`);
    if (firstAt !== null) facts.push(`first after ${seconds((firstAt - begun) / 1000)}`);
    if (usage) {
      const cached = usage.prompt_tokens_details?.cached_tokens;
      facts.push(`prompt ${usage.prompt_tokens}${cached ? `, ${cached} cached` : ""}`);
    }
    if (end) facts.push(end);
    return facts.join(" · ");
  }
}

// Copying

async function copy(button, text) {
  const name = button.dataset.name ??= button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = name; }, 1500);
  } catch { // not allowed, or the page came over plain HTTP from another machine
    $("code-text").value = text;
    $("code-dialog").showModal();
    $("code-text").select();
  }
}

function copyCode(event) {
  const button = event.target.closest("[data-copy=code]");
  if (button) copy(button, button.closest("figure").querySelector("code").textContent);
}
