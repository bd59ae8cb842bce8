// Lists of the API that grow at their head: if a list is in memory, only newer entries are requested.

// Usually there is one new entry since the last request; one more connects it to those in memory.
const FEW = 2;
const TIMES = 8;

/**
 * The newest entries of a list, given those in memory (`held`), both newest first; `ask(limit)` requests that many of
 * the newest. Requests a few, and more as long as some may be missing in between. Returns `held` if nothing is newer.
 */
export async function newest(held, limit, ask) {
  for (let few = FEW; held.length && few < limit; few *= TIMES) {
    const entries = await ask(few);
    if (entries.some(among(held))) return merged(entries, held, limit);
    if (entries.length < few) return entries; // the list has no more
  }
  return ask(limit);
}

/** Entries before those held that are not among them; `held` itself if there is none. At most `limit`. */
export function merged(entries, held, limit) {
  const isHeld = among(held);
  const newer = entries.filter((entry) => !isHeld(entry));
  return newer.length ? [...newer, ...held].slice(0, limit) : held;
}

// Entries have no id: those with equal content are the same.
function among(held) {
  const texts = new Set(held.map((entry) => JSON.stringify(entry)));
  return (entry) => texts.has(JSON.stringify(entry));
}
