// The view of the server's state: how much it does now, and how that went over the last minutes.

import { ELSEWHERE } from "./api.js";
import { $, h, say } from "./dom.js";
import { hitRate, percentile, rate } from "./metrics.js";
import { Plot } from "./plot.js";
import { seen } from "./poll.js";

const RATE_MS = 10000; // over which a rate is told
const PERCENTILE_MS = 30000;
const SPANS_MIN = [1, 2, 5]; // the shortest that the history fits in is shown
const PARTS = { p50: 0.5, p95: 0.95, p99: 0.99 };

const count = (value) => (value >= 10000 ? `${(value / 1000).toFixed(0)}k` : `${+value.toFixed(value < 10 ? 1 : 0)}`);
const share = (value) => value === 0 ? "0%" : `${(100 * value).toFixed(value < 0.1 ? 1 : 0)}%`;
export const seconds = (value) => {
  if (value === 0) return "0";
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  return value < 1 ? `${+(value * 1000).toPrecision(3)} ms` : `${+value.toPrecision(3)} s`;
};

/** The sample from about `ms` before the one at `place` in the history; the oldest where it is not so long. */
function earlier(place, ms) {
  const { history } = seen;
  const from = history[place].time - ms;
  let found = place;
  while (found > 0 && history[found].time > from) found--;
  return found < place ? history[found] : null;
}

const rates = (place, ...names) => names.map((name) => rate(earlier(place, RATE_MS), seen.history[place], name));
const percentiles = (place, name) =>
  Object.values(PARTS).map((part) => percentile(earlier(place, PERCENTILE_MS), seen.history[place], name, part));

const PLOTS = [ // title, lines, options, values of the sample at a place in the history
  ["Tokens a second", ["output", "prompt"], { format: count, top: 10 }, (place) => rates(place, "written", "read")],
  ["Requests", ["running", "waiting"], { format: count, top: 4 },
    (place) => [seen.history[place].running, seen.history[place].waiting]],
  ["Time to first token", Object.keys(PARTS), { format: seconds, top: 0.1 }, (place) => percentiles(place, "ttft")],
  ["Between tokens", Object.keys(PARTS), { format: seconds, top: 0.01 }, (place) => percentiles(place, "interToken")],
  ["KV cache in use", ["blocks"], { format: share, top: 1 }, (place) => [seen.history[place].kv]],
  ["Prefix cache", ["found"], { format: share, top: 1 },
    (place) => [hitRate(earlier(place, PERCENTILE_MS), seen.history[place])]],
];

const TILES = [ // name, text of the last sample, share of a bar
  ["Running", (now) => shown(now.running, count)],
  ["Waiting", (now) => shown(now.waiting, count)],
  ["Tokens a second", () => shown(rates(seen.history.length - 1, "written")[0], count)],
  ["KV cache in use", (now) => shown(now.kv, share), (now) => now.kv],
  ["Prefix cache hits", (now) => shown(now.lookedUp ? now.found / now.lookedUp : null, share),
    (now) => (now.lookedUp ? now.found / now.lookedUp : 0)],
  ["Engines ready", (now) => `${now.engines ?? 0} of ${seen.series["quire:engine_ready"]?.length ?? 0}`],
];

const shown = (value, format) => (value === null ? "–" : format(value));

let plots = [];
let tiles = [];

export function show() {
  if ($("state-view").hidden) return;
  say($("state-note"), note());
  $("tiles").hidden = $("plots").hidden = !seen.history.length;
  if (!seen.history.length) return;
  if (!plots.length) make();
  const now = seen.history.at(-1);
  const watched = (now.time - seen.history[0].time) / 60000;
  const minutes = SPANS_MIN.find((span) => watched <= span) ?? SPANS_MIN.at(-1);
  TILES.forEach(([, text, part], i) => {
    tiles[i].value.textContent = text(now);
    if (part) tiles[i].bar.value = part(now) ?? 0;
  });
  PLOTS.forEach(([, , , values], i) => {
    plots[i].show(seen.history.map(({ time }, place) => ({ time, values: values(place) })), now.time, minutes);
  });
}

function make() {
  tiles = TILES.map(([name, , part]) => {
    const value = h("dd");
    const bar = part ? h("progress", { max: 1, "aria-label": name }) : "";
    $("tiles").append(h("div", { class: "tile" }, h("dt", {}, name), value, bar));
    return { value, bar };
  });
  plots = PLOTS.map(([title, lines, options]) => new Plot(title, lines, options));
  $("plots").replaceChildren(...plots.map((plot) => plot.node));
}

const WHY = {
  0: () => "The server cannot be reached; this page tries again.",
  401: () => "Metrics need a key with the admin right, given as “API key” above.",
  403: ({ message }) => `Metrics need a key with the admin right. The server says: ${message}`,
  404: () => `Metrics cannot be had here. ${ELSEWHERE}`,
};

function note() {
  const last = seen.history.at(-1);
  if (!seen.refusal) return last ? "" : "Looking …";
  const why = (WHY[seen.refusal.status] ?? (({ message }) => message))(seen.refusal);
  return last ? `${why} What is shown here is of ${new Date(last.time).toLocaleTimeString()}.` : why;
}
