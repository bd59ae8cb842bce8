// The symbols that a reader has pinned, kept in this browser.

import { onWritten, read, write } from "./stored.js";

const NAME = "pins";
const listeners = new Set();
let pins = held();

onWritten(NAME, () => {
  pins = held();
  tell();
});

/** Whether a symbol is pinned. */
export const isPinned = (symbol) => pins.has(symbol);

/** All of them, in the order in which they were pinned. */
export const allPins = () => [...pins];

/** Pin a symbol, or no longer. */
export function togglePin(symbol) {
  if (!pins.delete(symbol)) pins.add(symbol);
  write(NAME, pins.size ? JSON.stringify([...pins]) : null);
  tell();
}

/** Call `act` whenever other symbols are pinned. */
export const onPins = (act) => listeners.add(act);

function tell() {
  for (const act of listeners) act();
}

// Another program of this origin may have stored anything under that name.
function held() {
  try {
    const symbols = JSON.parse(read(NAME) ?? "[]");
    return new Set(Array.isArray(symbols) ? symbols.filter((symbol) => typeof symbol === "string") : []);
  } catch {
    return new Set();
  }
}
