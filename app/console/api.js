// The server that the page came from: its addresses, the key that goes to it, and its refusals as errors.

const STORED = "quire-key";

/** Where `path` lies; below the path prefix of a proxy, where the page came through one. */
export const address = (path) => new URL(path, document.baseURI).href;

export const key = {
  get: () => sessionStorage.getItem(STORED) ?? "",
  set(value) {
    if (value) sessionStorage.setItem(STORED, value);
    else sessionStorage.removeItem(STORED);
  },
};

/** What a 404 of /metrics and /admin means. */
export const ELSEWHERE = "The server has a port of its own for this (--admin-port), or a proxy keeps it back.";

export class Refusal extends Error {
  /** `status` 0: the server could not be reached. */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** The reply to a request, whatever its status. Throws Refusal where there is none, AbortError where it was ended. */
export async function send(path, { body, signal } = {}) {
  const headers = {};
  if (body) headers["content-type"] = "application/json";
  // A header holds bytes; a key is what its UTF-8 bytes are.
  if (key.get()) headers.authorization = "Bearer " + String.fromCharCode(...new TextEncoder().encode(key.get()));
  try {
    return await fetch(address(path), {
      method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server cannot be reached.", 0);
  }
}

/** As `send`; throws Refusal, with the server's own words, for any status but 2xx. */
export async function ask(path, options) {
  const reply = await send(path, options);
  if (!reply.ok) throw await refusalOf(reply);
  return reply;
}

export const json = async (path, options) => (await ask(path, options)).json();

async function refusalOf(reply) {
  let told;
  try {
    told = (await reply.json()).error.message;
  } catch {
    // Not the server's own; a proxy's page, perhaps.
  }
  return new Refusal(told ?? `The reply was ${reply.status} ${reply.statusText}`.trim() + ".", reply.status);
}
