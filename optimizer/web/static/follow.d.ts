// Types of follow.js: what a page gets of this HTTP API, and how it follows it.

/** A value of an extra field, as the prediction engine wrote it. */
export type ExtraValue = string | number | boolean | null;

/** ISO 8601 text, or seconds since the epoch, as the engine wrote it. */
export type Timestamp = string | number;

/** One symbol's prediction. Prices and prediction in the quote currency, confidence in 0..1. */
export interface Record {
  readonly symbol: string;
  readonly prediction: number;
  readonly confidence: number;
  readonly last_price: number;
  readonly sentiment: string;
  readonly target_price: number | null;
  readonly stop_loss: number | null;
  readonly timestamp: Timestamp | null;
  /** The extra fields that ROLLING_FIELDS asks for; absent where none are configured. */
  readonly extra?: { readonly [field: string]: ExtraValue };
}

/** One bot; `positions` is their number. */
export interface BotSummary {
  readonly enabled: boolean;
  readonly equity: number | null;
  readonly pnl_today: number | null;
  readonly positions: number;
  readonly last_updated: Timestamp | null;
}

/** The net quantity of a symbol over all bots, and its average cost. */
export interface Holding {
  readonly symbol: string;
  readonly qty: number;
  readonly avg: number | null;
}

/**
 * What one version has. An entry that a new version has not changed is the same object as before, and a list of which
 * nothing has changed is the same list.
 */
export interface Content {
  /** Strictly rising. */
  readonly version: number;
  /** When its predictions were made, as ISO 8601 text. */
  readonly timestamp: string;
  /** By confidence, the highest first, then by symbol. */
  readonly predictions: readonly Record[];
  /** By name, in the order of names. */
  readonly bots: ReadonlyMap<string, BotSummary>;
  /** In the order of symbols. */
  readonly holdings: readonly Holding[];
}

/** What a call differs in from the one before: all of it at the first, nothing if only the number is new. */
export interface Changes {
  readonly predictions: { readonly changed: readonly Record[]; readonly removed: readonly string[] };
  readonly bots: { readonly changed: ReadonlyMap<string, BotSummary>; readonly removed: readonly string[] };
  readonly holdings: { readonly changed: readonly Holding[]; readonly removed: readonly string[] };
}

/**
 * `connecting` until the first answer, `live` while the stream is open, `polling` while there is none: then it asks
 * every `pollMs` and tries to open one again; `closed` after `close`.
 */
export type State = "connecting" | "live" | "polling" | "closed";

export interface Options {
  /** A new version, and what differs from the one that was told before. */
  onVersion?: (content: Content, changes: Changes) => void;
  onState?: (state: State) => void;
  /** Redis goes away (the API then serves the snapshot files) or comes back; or a late reply of it changes /status. */
  onStatus?: (status: { readonly cache_up: boolean }) => void;
  /** A request has failed; it is asked again by itself, after a growing time. */
  onError?: (problem: Problem) => void;
  /** Closes it for good. */
  signal?: AbortSignal;
  /** As of fetch; with "include" the stream sends cookies to another origin too. By default "same-origin". */
  credentials?: RequestCredentials;
  /** Milliseconds between two requests while no stream is open; by default 5,000. */
  pollMs?: number;
}

export interface Following {
  /** What is held, of one version; null before the first. */
  readonly content: Content | null;
  readonly state: State;
  /** Begin again after `close`: what is held is kept, and only what has changed since is fetched. */
  open(): void;
  /** End the stream and all requests, for instance while the page is hidden. */
  close(): void;
  /** Ask for news now, for instance after another answer has named a newer version. */
  check(): void;
}

/** Follow the source whose API is at `base`: by default where the page is, else a prefix or an absolute address. */
export function follow(base?: string | URL, options?: Options): Following;

/** An error of the API. `status` is 0 if it could not be reached; `body` has the problem details, if there are any. */
export class Problem extends Error {
  constructor(status: number, body?: { [member: string]: unknown });
  readonly status: number;
  readonly body: { readonly [member: string]: unknown };
}

/** Fetch JSON, with the options of fetch and a time limit in milliseconds; throws a `Problem`. */
export function fetchJson(url: string | URL, options?: RequestInit & { limitMs?: number }): Promise<unknown>;
