// Follows in Node: `node node.mjs BASE OPTIONS FACTOR`. Each line of its input is a method; prints the log after each.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

// By their text: older versions of Node take a file for a module only by its ending, or by a package.json.
const load = (path) => {
  const text = readFileSync(new URL(path, import.meta.url));
  return import(`data:text/javascript;base64,${text.toString("base64")}`);
};
const { follow } = await load("../../../optimizer/web/static/follow.js");
const { hasten, record } = await load("./recorder.js");

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
