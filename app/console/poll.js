// What the server says of itself, asked every 2 s while somebody looks at the page: /readyz, which anyone may ask, and
// /metrics, which may need an admin key. Keeps the last minutes; whoever shows them is told after each look.

import { Refusal, ask, key, send } from "./api.js";
import { parse, sampleOf } from "./metrics.js";

const LOOK_MS = 2000;
const LOOK_WHILE_LOADING_MS = 500;
const PATIENCE_MS = 10000;
const KEPT_MS = 5 * 60 * 1000;

export const UNREACHABLE = "unreachable";

export const seen = {
  /** The body of /readyz, or the status "unreachable"; null before the first look. */
  readiness: null,
  /** Of the last good look at /metrics. */
  series: null,
  /** Samples, oldest first; no older than KEPT_MS. */
  history: [],
  /** Why there are no metrics: a Refusal, or null. */
  refusal: null,
};

const listeners = [];
let timer = 0;
let looking = false;
let refusedKey = null; // with it, /metrics is not asked again

export const onLook = (listener) => listeners.push(listener);

/** Whether the model answers. */
export const answers = () => ["ready", "degraded"].includes(seen.readiness?.status);

export function start() {
  document.addEventListener("visibilitychange", lookNow);
  lookNow();
}

/** Looks at once, and from then on as before. */
export function lookNow() {
  clearTimeout(timer);
  if (!document.hidden && !looking) look();
}

/** A new key may be let in where the last one was not. */
export function keyChanged() {
  refusedKey = null;
  seen.refusal = seen.series = null;
  seen.history = [];
  lookNow();
}

async function look() {
  looking = true;
  await Promise.all([lookAtReadiness(), lookAtMetrics()]);
  looking = false;
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(look, answers() ? LOOK_MS : LOOK_WHILE_LOADING_MS);
  for (const listener of listeners) listener();
}

async function lookAtReadiness() {
  try {
    seen.readiness = await (await send("readyz", { signal: AbortSignal.timeout(PATIENCE_MS) })).json();
  } catch {
    seen.readiness = { status: UNREACHABLE };
  }
}

async function lookAtMetrics() {
  const asked = key.get();
  if (refusedKey === asked) return;
  try {
    const text = await (await ask("metrics", { signal: AbortSignal.timeout(PATIENCE_MS) })).text();
    if (key.get() !== asked) return;
    seen.series = parse(text);
    const sample = sampleOf(seen.series, Date.now());
    seen.history = [...seen.history.filter(({ time }) => time > sample.time - KEPT_MS), sample];
    seen.refusal = null;
  } catch (error) {
    if (!(error instanceof Refusal)) return; // too slow; the next look may be luckier
    seen.refusal = error;
    if ([401, 403, 404].includes(error.status)) refusedKey = asked;
  }
}
