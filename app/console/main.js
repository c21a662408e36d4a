// The page as a whole: its three views, how the server stands, and the key.

import { key } from "./api.js";
import * as chat from "./chat.js";
import { $, say } from "./dom.js";
import { UNREACHABLE, answers, keyChanged, onLook, seen, start } from "./poll.js";
import * as server from "./server.js";
import * as state from "./state.js";
import { seconds } from "./state.js";

const VIEWS = { chat: () => $("question").focus(), state: state.show, server: () => seen.readiness && server.show() };

const STANDINGS = { // status of /readyz -> what the page calls it, its colour
  ready: ["Ready", "good"],
  degraded: ["Ready, with fewer engines", "fair"],
  loading: ["Loading", "fair"],
  restarting: ["Starting again", "fair"],
  draining: ["Shutting down", "bad"],
  hung: ["Not responding", "bad"],
  gone: ["Engine gone", "bad"],
  [UNREACHABLE]: ["No connection", "bad"],
};

function showView() {
  const name = location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "chat";
  for (const each of Object.keys(VIEWS)) $(`${each}-view`).hidden = each !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  VIEWS[name]();
}

function showStanding() {
  const { status, phase, fraction, eta_s: eta } = seen.readiness;
  const [text, tone] = STANDINGS[status] ?? [status, "fair"];
  const loads = phase !== undefined;
  $("status").dataset.tone = tone;
  say($("status"), text);
  $("loading").hidden = !loads;
  if (!loads) return;
  const left = eta ? `, about ${seconds(Math.max(1, Math.round(eta)))} left` : "";
  const what = status === "restarting" ? "The engine is starting again" : "The model is not ready yet";
  say($("loading-text"), `${what}: ${phase}, ${Math.floor(fraction * 100)}%${left}.`);
  $("loading-bar").value = fraction;
}

// The key

let refused = false; // what the server said of the key, or of there being none

function askForKey(reason) {
  refused = true;
  showKey();
  openKey(reason);
}

function openKey(reason = "") {
  say($("key-reason"), reason);
  $("key").value = key.get();
  $("key-forget").hidden = !key.get();
  if (!$("key-dialog").open) $("key-dialog").showModal();
  $("key").select();
}

function useKey(value) {
  key.set(value);
  $("key-dialog").close();
  acceptKey();
  chat.forgetModels();
  keyChanged();
  if (!$("server-view").hidden) server.show();
}

function acceptKey() {
  refused = false;
  showKey();
}

function showKey() {
  $("key-button").textContent = key.get() ? (refused ? "API key refused" : "API key ✓")
    : (refused ? "API key needed" : "API key");
  $("key-button").classList.toggle("refused", refused);
}

$("key-button").addEventListener("click", () => openKey());
$("key-cancel").addEventListener("click", () => $("key-dialog").close());
$("key-forget").addEventListener("click", () => useKey(""));
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
});
$("code-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("code-dialog").close();
});
$("refresh").addEventListener("click", server.show);
window.addEventListener("hashchange", showView);
window.addEventListener("resize", state.show);

onLook(showStanding);
onLook(state.show);
let answered = false;
onLook(() => { // what is served is known only when it is
  if (answers() && !answered && !$("server-view").hidden) server.show();
  answered = answers();
});
chat.start(askForKey, acceptKey);
showKey();
showView();
start();
