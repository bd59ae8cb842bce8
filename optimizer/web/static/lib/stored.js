// The choices of a reader that this browser stores, over visits and for all pages of this origin: text by name. If
// storage is forbidden or full, a choice lasts as long as the page.

const PREFIX = "rolling-optimizer.";
const kept = new Map();

/** The text of this name, or null. */
export function read(name) {
  try {
    return localStorage.getItem(PREFIX + name) ?? kept.get(name) ?? null;
  } catch {
    return kept.get(name) ?? null;
  }
}

/** Keep a text under this name; null removes it. Returns whether it is kept for other visits too. */
export function write(name, text) {
  kept.set(name, text);
  try {
    if (text === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, text);
    return true;
  } catch {
    return false; // the page keeps the choice itself
  }
}

/** Call `act` when another page of this browser has changed the text of this name. */
export function onWritten(name, act) {
  addEventListener("storage", ({ key }) => {
    if (key !== null && key !== PREFIX + name) return;
    kept.delete(name);
    act();
  });
}
