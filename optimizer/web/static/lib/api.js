// The HTTP API as this page uses it: JSON or a Problem, and the stream of new versions. All addresses are relative, so
// that the page works behind a proxy's prefix.

const ANSWER_MS = 10_000;
const RETRY_FIRST_MS = 1_000;
const RETRY_LAST_MS = 30_000;

/** A response that is an error. `status` is 0 if the API could not be reached; `body` holds the problem details. */
export class Problem extends Error {
  constructor(status, body = {}) {
    super(body.detail || body.title || (status ? `the API answered ${status}` : "the API cannot be reached"));
    this.status = status;
    this.body = body;
  }
}

/** GET; returns the body. Throws a Problem. */
export const get = async (path, token) => (await ask(path, { headers: token ? bearer(token) : {} })).body;

/** The same with the version of the snapshot that it was read from, or null. */
export const getVersioned = (path) => ask(path, {});

/** POST JSON with a token; returns the body. Throws a Problem. */
export const post = async (path, body, token) =>
  (
    await ask(path, {
      method: "POST",
      headers: { ...bearer(token), "Content-Type": "application/json" },
      body: JSON.stringify(body),
    })
  ).body;

const bearer = (token) => ({ Authorization: `Bearer ${token}` });

async function ask(path, options) {
  let answer;
  let text;
  try {
    // no-cache: ask each time, and let the ETag save the bytes.
    answer = await fetch(path, { cache: "no-cache", signal: AbortSignal.timeout(ANSWER_MS), ...options });
    text = await answer.text();
  } catch (error) {
    throw new Problem(0, { title: `the API cannot be reached: ${error.message}` });
  }
  const body = parsed(text);
  if (!answer.ok || body === null) {
    throw new Problem(answer.ok ? 0 : answer.status, body ?? {});
  }
  return { body, version: Number(answer.headers.get("X-Snapshot-Version")) || null };
}

// A proxy on the way may answer in HTML.
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/**
 * The stream of versions, open as long as the page is seen.
 *
 * The browser reconnects by itself if a connection breaks, but not if something answers with an error (a proxy
 * whose backend restarts): that is done here, at growing intervals. `onState` is called with `connecting`, `live` or `lost`.
 */
export class Live {
  #source = null;
  #timer = null;
  #retryMs = RETRY_FIRST_MS;

  constructor({ onVersion, onCache, onState }) {
    this.onVersion = onVersion;
    this.onCache = onCache;
    this.onState = onState;
  }

  open() {
    if (this.#source) return;
    clearTimeout(this.#timer);
    const source = new EventSource("events");
    this.#source = source;
    source.addEventListener("open", () => {
      this.#retryMs = RETRY_FIRST_MS;
      this.onState("live");
    });
    source.addEventListener("version", (event) => this.onVersion(JSON.parse(event.data).version));
    source.addEventListener("status", (event) => this.onCache(JSON.parse(event.data).cache_up));
    source.addEventListener("error", () => {
      this.onState("lost");
      if (source.readyState === EventSource.CLOSED) this.#retry();
    });
  }

  close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #retry() {
    this.close();
    // Spread, so that a thousand pages do not come back in the same instant.
    this.#timer = setTimeout(() => this.open(), this.#retryMs * (0.5 + Math.random()));
    this.#retryMs = Math.min(2 * this.#retryMs, RETRY_LAST_MS);
  }
}
