// Keeps predictions, bots and holdings of one source current, in any page that reaches this HTTP API:
//
//     import { follow } from "./follow.js";
//     const following = follow("/api", { onVersion: ({ predictions, bots, holdings }, changes) => { ... } });
//
// The whole snapshot is fetched once (GET snapshot). The changes of each version come by server-sent events (GET
// events?data=changes&since=V), or are requested (GET changes?since=V): if a message does not apply to the present
// content, and every few seconds while no stream can be opened. If the API no longer has the changes, the whole
// snapshot is fetched again.
//
// Each call of onVersion has the content of one version, and versions only rise: a response of a process that lags, or
// that comes late, is ignored. No dependencies; types in follow.d.ts, manual in docs/http.md.

const POLL_MS = 5_000;
// Some proxies hold back the messages of an open stream, so changes are also requested occasionally.
const CHECK_MS = 60_000;
const ANSWER_MS = 30_000;
const RETRY_FIRST_MS = 1_000;
const RETRY_LAST_MS = 30_000;
// A stream that lasted this long did not fail: a proxy's time limit, or a restart, has ended it.
const STREAM_GOOD_MS = 10_000;

/** An error of the API. `status` is 0 if it could not be reached; `body` has the problem details, if there are any. */
export class Problem extends Error {
  constructor(status, body = {}) {
    super(body.detail || body.title || (status ? `the API answered ${status}` : "the API cannot be reached"));
    this.name = "Problem";
    this.status = status;
    this.body = body;
  }
}

/** Fetch JSON, with the options of fetch and a time limit; throws a Problem. */
export async function fetchJson(url, { signal, limitMs = ANSWER_MS, ...options } = {}) {
  const signals = [AbortSignal.timeout(limitMs), ...(signal ? [signal] : [])];
  let answer;
  let text;
  try {
    // no-cache: send the request each time, and let the ETag in the browser's cache save the bytes.
    answer = await fetch(url, { cache: "no-cache", ...options, signal: AbortSignal.any(signals) });
    text = await answer.text();
  } catch (error) {
    throw new Problem(0, { title: `the API cannot be reached: ${error.message}` });
  }
  const body = parsed(text);
  if (!answer.ok) throw new Problem(answer.status, body ?? {});
  if (body === null) throw new Problem(0, { title: `the API cannot be reached: ${url} answered with another body` });
  return body;
}

/**
 * Follow the source whose API is at `base`, until it is closed. By default the API is at the page's address; `base` can
 * be a prefix (`/api`) or an address of another origin. See follow.d.ts for the options.
 */
export function follow(base = "", options = {}) {
  const following = new Following(addressOf(String(base)), options);
  following.open();
  return following;
}

class Following {
  #base;
  #options;
  #opened = null; // an AbortController while it is open
  #state = "closed";
  #content = null;
  #maps = { predictions: new Map(), bots: new Map(), holdings: new Map() }; // of #content, by name and in its order
  #newest = 0; // the newest version that was announced, though its content may not be here yet

  #isAsking = false;
  #asksAgain = false;
  #asksWhole = true;
  #askFailures = 0;
  #askTimer = null;

  #stream = null;
  #streamFailures = 0;
  #streamTimer = null;

  constructor(base, options) {
    this.#base = base;
    this.#options = { credentials: "same-origin", pollMs: POLL_MS, ...options };
    this.#options.signal?.addEventListener("abort", () => this.close());
    // Not reported: onState is called when the state changes, and never before `follow` has returned.
    if (!this.#options.signal?.aborted) this.#state = globalThis.EventSource ? "connecting" : "polling";
  }

  get content() {
    return this.#content;
  }

  get state() {
    return this.#state;
  }

  open() {
    if (this.#opened || this.#options.signal?.aborted) return;
    this.#opened = new AbortController();
    this.#askFailures = this.#streamFailures = 0;
    this.#openStream();
    if (this.#asksWhole || !this.#stream) this.#ask(); // else the stream sends the changes made meanwhile
    this.#become(this.#stream ? "connecting" : "polling");
  }

  close() {
    if (!this.#opened) return;
    this.#opened.abort();
    this.#opened = null;
    clearTimeout(this.#askTimer);
    this.#closeStream();
    this.#become("closed");
  }

  check() {
    if (this.#opened) this.#ask();
  }

  // Requests ----------------------------------------------------------------------------------------------------------

  // One at a time: a call during a request sends one more request after it.
  async #ask() {
    this.#asksAgain = this.#isAsking;
    if (this.#isAsking) return;
    this.#isAsking = true;
    clearTimeout(this.#askTimer);
    const { signal } = this.#opened;
    let problem = null;
    try {
      do {
        this.#asksAgain = false;
        const known = this.#newest;
        await this.#askOnce(signal);
        // The stream may have announced a version meanwhile that the response does not reach.
        this.#asksAgain ||= this.#newest > known && this.#content?.version < this.#newest;
      } while (this.#asksAgain && !signal.aborted);
    } catch (error) {
      problem = error instanceof Problem ? error : new Problem(0, { title: `the answer cannot be used: ${error}` });
    }
    this.#isAsking = false;
    if (signal.aborted) {
      if (this.#opened) this.#ask();
      return;
    }
    // The response may be from a process that lags behind the one that announced the newest version.
    const isBehind = this.#asksWhole || this.#content.version < this.#newest;
    this.#askFailures = problem || isBehind ? this.#askFailures + 1 : 0;
    this.#schedule();
    if (problem) this.#tell("onError", problem);
  }

  async #askOnce(signal) {
    const { credentials } = this.#options;
    const get = (path) => fetchJson(new URL(path, this.#base), { credentials, signal });
    if (!this.#asksWhole) {
      try {
        const answer = await get(`changes?since=${this.#content.version}`);
        if (!signal.aborted) this.#takeChanges(answer);
        return;
      } catch (problem) {
        if (problem.status !== 410 || signal.aborted) throw problem;
        this.#hear(problem.body.version);
        this.#asksWhole = true;
      }
    }
    const whole = await get("snapshot");
    if (!signal.aborted) this.#takeWhole(whole);
  }

  #schedule() {
    if (!this.#opened || this.#isAsking) return;
    clearTimeout(this.#askTimer);
    const everyMs = this.#state === "live" ? CHECK_MS : this.#options.pollMs;
    const waitMs = this.#askFailures ? retryMs(this.#askFailures) : spread(everyMs);
    this.#askTimer = setTimeout(() => this.#ask(), waitMs);
  }

  #takeWhole({ version, timestamp, predictions, bots, holdings }) {
    this.#hear(version);
    if (version === this.#content?.version) this.#asksWhole = false; // the stream was faster
    if (version <= this.#content?.version) return;
    const values = { predictions: bySymbol(predictions), bots: Object.entries(bots), holdings: bySymbol(holdings) };
    this.#show(version, timestamp, eachKind((kind) => ordered(kind, values[kind])));
  }

  #takeChanges({ version, changes }) {
    this.#hear(version);
    let { version: reached, timestamp } = this.#content;
    let maps = this.#maps;
    for (const change of changes) {
      if (change.version <= reached) continue;
      if (!fits(change, reached)) {
        this.#asksWhole = this.#asksAgain = true;
        return;
      }
      maps = applied(maps, change);
      reached = change.version;
      timestamp = timeAfter(change, timestamp);
    }
    if (version > this.#content.version) this.#show(version, timestamp, maps);
  }

  // The stream --------------------------------------------------------------------------------------------------------

  #openStream() {
    if (!globalThis.EventSource) return;
    const url = new URL("events?data=changes", this.#base);
    if (this.#content) url.searchParams.set("since", this.#content.version);
    const stream = new EventSource(url, { withCredentials: this.#options.credentials === "include" });
    const startedAt = performance.now();
    const on = (kind, act) => stream.addEventListener(kind, ({ data }) => this.#stream === stream && act(data));
    this.#stream = stream;
    on("open", () => this.#become("live"));
    for (const kind of ["version", "change", "reset"]) on(kind, (data) => this.#takeMessage(kind, data));
    on("status", (data) => this.#tell("onStatus", parsed(data)));
    // The browser would reconnect by itself, but not after an error of a proxy, and for all pages at the same moment.
    on("error", () => {
      this.#closeStream();
      this.#streamFailures = performance.now() - startedAt < STREAM_GOOD_MS ? this.#streamFailures + 1 : 1;
      this.#streamTimer = setTimeout(() => this.#openStream(), retryMs(this.#streamFailures));
      this.#become("polling");
    });
  }

  #closeStream() {
    clearTimeout(this.#streamTimer);
    this.#stream?.close();
    this.#stream = null;
  }

  #takeMessage(kind, data) {
    const message = parsed(data) ?? {};
    const { version, since } = message;
    const held = this.#content;
    this.#hear(version);
    if (version <= held?.version) return;
    if (kind === "change" && fits(message, held?.version)) {
      this.#show(version, timeAfter(message, held.timestamp), applied(this.#maps, message));
    } else if (kind === "version" && since <= held?.version) {
      this.#show(version, held.timestamp, this.#maps);
    } else {
      this.#asksWhole ||= kind === "reset";
      if (!this.#isAsking || kind === "reset") this.#ask();
    }
  }

  // What is held ------------------------------------------------------------------------------------------------------

  #hear(version) {
    if (Number.isInteger(version)) this.#newest = Math.max(this.#newest, version);
  }

  // Entries that are equal stay the same objects, and lists that are equal the same lists.
  #show(version, timestamp, maps) {
    const last = this.#content;
    this.#asksWhole = false;
    const changes = eachKind((kind) => compared(this.#maps[kind], maps[kind]));
    const isSame = (kind) => last !== null && !changes[kind].changed.size && !changes[kind].removed.length;
    this.#maps = eachKind((kind) => (isSame(kind) ? this.#maps[kind] : maps[kind]));
    const values = (kind) => (isSame(kind) ? last[kind] : [...this.#maps[kind].values()]);
    this.#content = {
      version,
      timestamp,
      predictions: values("predictions"),
      bots: this.#maps.bots,
      holdings: values("holdings"),
    };
    for (const kind of ["predictions", "holdings"]) changes[kind].changed = [...changes[kind].changed.values()];
    this.#tell("onVersion", this.#content, changes);
  }

  #become(state) {
    if (state === this.#state) return;
    this.#state = state;
    this.#schedule();
    this.#tell("onState", state);
  }

  // An error of the page's function is reported as an uncaught error of the page, and the following goes on.
  #tell(name, ...values) {
    try {
      this.#options[name]?.(...values);
    } catch (error) {
      (globalThis.reportError ?? console.error)(error);
    }
  }
}

// Changes -------------------------------------------------------------------------------------------------------------

const eachKind = (make) => ({ predictions: make("predictions"), bots: make("bots"), holdings: make("holdings") });
const bySymbol = (values) => values.map((value) => [value.symbol, value]);

/** Whether a change may be applied to the content of this version. */
const fits = ({ since, before }, version) => since <= version && version <= before;

/** When the predictions were made, after a change. */
const timeAfter = ({ predictions, timestamp }, held) => (predictions ? (predictions.timestamp ?? timestamp) : held);

/** The content after a change. */
function applied(maps, change) {
  return eachKind((kind) => {
    if (!change[kind]) return maps[kind];
    const { changed, removed } = change[kind];
    const map = new Map(maps[kind]);
    for (const name of removed) map.delete(name);
    for (const [name, value] of kind === "bots" ? Object.entries(changed) : bySymbol(changed)) map.set(name, value);
    return ordered(kind, map);
  });
}

/** Predictions by descending confidence, then symbol; bots and holdings by name. */
function ordered(kind, entries) {
  const byName = ([a], [b]) => compareText(a, b);
  const byConfidence = (a, b) => b[1].confidence - a[1].confidence || byName(a, b);
  return new Map([...entries].sort(kind === "predictions" ? byConfidence : byName));
}

/** Compare by code points, as the API does: JavaScript's own order differs for those above U+FFFF. */
function compareText(a, b) {
  const shared = Math.min(a.length, b.length);
  for (let index = 0; index < shared; index++) {
    const [one, other] = [a.charCodeAt(index), b.charCodeAt(index)];
    if (one === other) continue;
    return rank(one) - rank(other);
  }
  return a.length - b.length;
}

// The rank of a UTF-16 unit among code points: surrogates represent those above all others.
const rank = (unit) => (unit >= 0xd800 && unit <= 0xdfff ? unit + 0x10000 : unit);

/** The entries that differ, by name. For an equal entry, `after` gets the object in `before`. */
function compared(before, after) {
  const changed = new Map();
  if (before === after) return { changed, removed: [] };
  for (const [name, value] of after) {
    const last = before.get(name);
    if (last === value) continue;
    if (last !== undefined && JSON.stringify(last) === JSON.stringify(value)) after.set(name, last);
    else changed.set(name, value);
  }
  return { changed, removed: [...before.keys()].filter((name) => !after.has(name)) };
}

// Small things --------------------------------------------------------------------------------------------------------

function addressOf(base) {
  const page = globalThis.document?.baseURI ?? globalThis.location?.href;
  return new URL(base === "" || base.endsWith("/") ? base : `${base}/`, page);
}

// A proxy may respond with HTML.
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

// At random, so that a thousand pages do not reconnect at the same instant.
const spread = (ms) => ms * (0.5 + Math.random());
const retryMs = (failures) => spread(Math.min(RETRY_FIRST_MS * 2 ** (failures - 1), RETRY_LAST_MS));
