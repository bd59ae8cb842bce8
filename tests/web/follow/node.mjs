// Follows in Node: `node node.mjs BASE OPTIONS FACTOR`. Each line of its input is a method; prints the log after each.

import { createInterface } from "node:readline";
import { follow } from "../../../optimizer/web/static/follow.js";
import { hasten, record } from "./recorder.js";

const [base, options, factor] = process.argv.slice(2);
hasten(Number(factor));
const ending = new AbortController();
const { following, log } = record(follow, base, { ...JSON.parse(options), signal: ending.signal });
const methods = { open: () => following.open(), close: () => following.close(), check: () => following.check(), end: () => ending.abort() };

for await (const line of createInterface({ input: process.stdin })) {
  methods[line]?.();
  console.log(JSON.stringify({ ...log, state: following.state, version: following.content?.version ?? null }));
}
ending.abort();
