// What the types declare is there when the module is loaded: `follow` itself needs a page, or an address.

import { fetchJson, follow, Problem } from "./follow.js";

const following = follow("http://127.0.0.1:9/", { signal: AbortSignal.abort() });
const members: unknown[] = [follow, fetchJson, following.open, following.close, following.check];
const problem = new Problem(410, { detail: "gone" });
if (
  !members.every((member) => typeof member === "function") ||
  following.content !== null ||
  following.state !== "closed" ||
  !(problem instanceof Error) ||
  problem.status !== 410 ||
  problem.body["detail"] !== problem.message
) {
  throw new Error("follow.js lacks what follow.d.ts declares");
}
