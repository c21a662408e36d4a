// The view of what is served: models and limits, and with an admin key the keys with their use, and all settings.
// Asked for when it is opened and on demand only: the server's audit log has a line for each look at /admin.

import { ELSEWHERE, json, key } from "./api.js";
import { $, h } from "./dom.js";
import { seen } from "./poll.js";

const LIMITS = { // labels of vllm:cache_config_info -> what they are called
  device: "Device", cache_dtype: "Type of K and V", max_model_len: "Context, tokens",
  max_num_seqs: "Most samples at once", max_num_batched_tokens: "Most tokens in a step",
  num_gpu_blocks: "KV blocks", block_size: "Tokens in a block", enable_prefix_caching: "Prefix cache",
};
const USE = { "quire:key_requests_total": "requests", "quire:key_prompt_tokens_total": "prompt",
  "quire:key_output_tokens_total": "output" };

const WHY = { // status of a refusal -> what it means here
  401: "The server needs a key that it knows; give it as “API key” above.",
  404: ELSEWHERE,
};
const WITHOUT_KEY = "With an admin key, given as “API key” above, this page also shows the limits and use of all " +
  "keys, and the server's settings. A server without keys has no such key: set VLLM_API_KEY.";

const number = (value) => (value ?? 0).toLocaleString("en");
const limit = (value) => (value ? number(value) : "–");
const day = (iso) => (iso ? new Date(iso).toLocaleDateString(undefined, { dateStyle: "medium" }) : "–");

/** A label's text as a person writes it. */
const told = (text) => ({ True: "on", False: "off" })[text] ?? (/^\d+$/.test(text) ? number(Number(text)) : text);

export async function show() {
  const sections = []; // {titles, body}, or {titles, why} for those that cannot be shown
  const add = async (title, content) => {
    const one = await content().then((body) => ({ body }), (error) => ({ why: WHY[error.status] ?? error.message }));
    const last = sections.at(-1);
    if (one.why && last?.why === one.why) last.titles.push(title);
    else sections.push({ titles: [title], ...one });
  };
  await add("Models", models);
  if (seen.series?.["vllm:cache_config_info"]) await add("Limits", limits);
  if (key.get()) {
    await add("Keys", keys);
    await add("Settings", settings);
  }
  $("server").replaceChildren(...sections.map(({ titles, body, why }) =>
    h("section", {}, h("h2", {}, titles.join(", ")), body ?? h("p", { class: "note" }, why))),
  key.get() ? "" : h("p", { class: "note" }, WITHOUT_KEY));
}

async function models() {
  const { data } = await json("v1/models");
  return table(["Name", "Loaded from", "Context, tokens"], data.map((card) => [
    h("code", {}, card.id), card.root, number(card.max_model_len)]), [2]);
}

async function limits() {
  const engines = seen.series["vllm:cache_config_info"].map(({ labels }) => labels);
  const values = (label) => [...new Set(engines.map((one) => told(one[label])))].join(", ");
  return pairs(Object.entries(LIMITS).map(([label, name]) => [name, values(label)]));
}

async function keys() {
  const { keys: all } = await json("admin/keys");
  const use = {};
  for (const [metric, what] of Object.entries(USE)) {
    for (const { labels, value } of seen.series?.[metric] ?? []) (use[labels.key] ??= {})[what] = value;
  }
  const shown = table(
    ["Key", "Requests", "Prompt tokens", "Output tokens", "Requests a minute", "Tokens a minute", "At once", "Models",
      "Until"],
    all.map((one) => [
      h("span", {}, h("code", {}, one.name), one.admin ? h("span", { class: "badge" }, "admin") : "",
        one.expired ? h("span", { class: "badge bad" }, "expired") : ""),
      number(use[one.name]?.requests), number(use[one.name]?.prompt), number(use[one.name]?.output),
      limit(one.requests_per_minute), limit(one.tokens_per_minute), limit(one.max_concurrent),
      one.models?.join(", ") ?? "all", day(one.not_after)]),
    [1, 2, 3, 4, 5, 6]);
  return h("div", {}, shown, h("p", { class: "note" },
    "Since the server's start; requests of all kinds, this page's looks at /metrics too."));
}

async function settings() {
  const status = await json("admin/status");
  const written = (value) => {
    if (value === null) return "–";
    return typeof value === "string" ? value : JSON.stringify(value);
  };
  const all = Object.entries(status.settings).map(([name, value]) => [
    h("code", {}, `--${name.replaceAll("_", "-")}`), written(value)]);
  return h("div", {},
    pairs([["Version", status.version], ["Up", duration(status.uptime_s)], ["Log level", status.log_level],
      ["Keys", `${status.keys.number}${status.keys.healthy ? "" : "; the key file cannot be read, those before stay"}`],
      ["Engines", status.engines.map(({ state }) => state).join(", ")]]),
    h("details", {}, h("summary", {}, `All ${all.length} settings`), table(["Setting", "Value"], all)));
}

function duration(s) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const from = parts.findIndex(([unit]) => s >= unit);
  if (from < 0) return "0 s";
  const two = parts.slice(from, from + 2);
  return two.map(([unit, name], i) => `${Math.floor((i ? s % two[0][0] : s) / unit)} ${name}`).join(" ");
}

const pairs = (all) => h("dl", { class: "pairs" },
  ...all.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));

/** `numeric`: the columns that are numbers. */
function table(names, rows, numeric = []) {
  const cell = (name, content, i) => h(name, { class: numeric.includes(i) ? "number" : null }, content);
  return h("div", { class: "scroll", tabindex: 0 }, h("table", {},
    h("thead", {}, h("tr", {}, ...names.map((content, i) => cell("th", content, i)))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((content, i) => cell("td", content, i)))))));
}
