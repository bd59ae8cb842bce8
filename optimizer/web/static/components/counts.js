// The number of changes of a version or a run, in words.

import { count } from "../lib/format.js";

const KINDS = ["predictions", "bots", "holdings"];

/** `Predictions 2 added, 5 changed; bots 1 removed` from counts by kind; "" if all are 0. */
export function changesText(counts) {
  const text = KINDS.map((kind) => [kind, Object.entries(counts[kind] ?? {}).filter(([, number]) => number > 0)])
    .filter(([, numbers]) => numbers.length)
    .map(([kind, numbers]) => `${kind} ${numbers.map(([word, number]) => `${count(number)} ${word}`).join(", ")}`)
    .join("; ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}
