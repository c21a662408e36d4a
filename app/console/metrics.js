// The text of /metrics as the few numbers that the page shows, and what changes of counters say: rates, percentiles.

const PLAIN = {
  running: "vllm:num_requests_running",
  waiting: "vllm:num_requests_waiting",
  kv: "vllm:kv_cache_usage_perc",
  engines: "quire:engine_ready",
  lookedUp: "vllm:prefix_cache_queries_total",
  found: "vllm:prefix_cache_hits_total",
  read: "vllm:prompt_tokens_total",
  written: "vllm:generation_tokens_total",
};
const HISTOGRAMS = {
  ttft: "vllm:time_to_first_token_seconds_bucket",
  interToken: "vllm:inter_token_latency_seconds_bucket",
};
const OTHERS = ["vllm:cache_config_info", "quire:key_requests_total", "quire:key_prompt_tokens_total",
  "quire:key_output_tokens_total"];
const WANTED = new Set([...Object.values(PLAIN), ...Object.values(HISTOGRAMS), ...OTHERS]);
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** {metric: [{labels, value}]} of those that the page knows. */
export function parse(text) {
  const series = {};
  for (const line of text.split("\n")) {
    const name = /^[\w:]+/.exec(line)?.[0];
    if (!WANTED.has(name)) continue;
    const labels = {};
    for (const [, label, value] of line.slice(name.length).matchAll(LABEL)) {
      labels[label] = value.replace(/\\(.)/g, (_, char) => (char === "n" ? "\n" : char));
    }
    (series[name] ??= []).push({ labels, value: Number(line.slice(line.lastIndexOf(" ") + 1)) });
  }
  return series;
}

/** What the page plots, at `time` (ms). Of several engines: sums, and the mean of their KV caches. */
export function sampleOf(series, time) {
  const sample = { time };
  for (const [name, metric] of Object.entries(PLAIN)) {
    sample[name] = series[metric]?.reduce((sum, one) => sum + one.value, 0) ?? null;
  }
  if (sample.kv !== null) sample.kv /= series[PLAIN.kv].length;
  for (const [name, metric] of Object.entries(HISTOGRAMS)) sample[name] = cumulative(series[metric] ?? []);
  return sample;
}

/** [[bound, observations up to it]], bounds ascending. */
function cumulative(buckets) {
  const sums = new Map();
  for (const { labels, value } of buckets) {
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    sums.set(bound, (sums.get(bound) ?? 0) + value);
  }
  return [...sums].sort(([a], [b]) => a - b);
}

/** What a counter grew by; one that fell began anew. */
const grown = (before, after) => (after >= before ? after - before : after);

/** By name, a second; null where it cannot be told. */
export function rate(before, after, name) {
  if (!before || before[name] === null || after[name] === null) return null;
  return grown(before[name], after[name]) / ((after.time - before.time) / 1000);
}

/** Share of the prompt tokens looked up between the two that the prefix cache had; null where there were none. */
export function hitRate(before, after) {
  if (!before || before.lookedUp === null || after.lookedUp === null) return null;
  const lookedUp = grown(before.lookedUp, after.lookedUp);
  return lookedUp ? Math.min(1, grown(before.found, after.found) / lookedUp) : null;
}

/** Seconds that the share `part` of what was observed between the two took at most; null where nothing was. */
export function percentile(before, after, name, part) {
  if (!before || before[name].length !== after[name].length) return null;
  const fresh = after[name].at(-1)?.[1] < before[name].at(-1)?.[1];
  const counts = after[name].map(([bound, count], i) => [bound, fresh ? count : count - before[name][i][1]]);
  const total = counts.at(-1)?.[1];
  if (!total) return null;
  const place = counts.findIndex(([, count]) => count >= part * total);
  const [bound, count] = counts[place];
  const [lower, fewer] = place ? counts[place - 1] : [0, 0];
  return bound === Infinity ? lower : lower + (bound - lower) * ((part * total - fewer) / (count - fewer));
}
