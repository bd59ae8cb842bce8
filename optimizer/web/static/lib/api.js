// The page's requests to the HTTP API, besides the data that it follows: JSON or a Problem. All addresses are relative,
// so that the page works behind a proxy's prefix.

import { fetchJson } from "../follow.js";

export { Problem } from "../follow.js";

const LIMIT_MS = 10_000;

/** GET; returns the body. Throws a Problem. */
export const get = (path, token) => fetchJson(path, { limitMs: LIMIT_MS, headers: token ? bearer(token) : {} });

/** POST JSON with a token; returns the body. Throws a Problem. */
export const post = (path, body, token) =>
  fetchJson(path, {
    limitMs: LIMIT_MS,
    method: "POST",
    headers: { ...bearer(token), "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });

const bearer = (token) => ({ Authorization: `Bearer ${token}` });
