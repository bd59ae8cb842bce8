// Lists of the API that grow at their head: of one that is held, only what is newer is asked for.

// Mostly one entry has come since the last time; one more joins it to those held.
const FEW = 2;
const TIMES = 8;

/**
 * The newest entries of a list, of which `held` are held, both the newest first; `ask(limit)` gives so many of the
 * newest. Asks for a few, and for more as long as some may be missing between. Returns `held` if nothing is newer.
 */
export async function newest(held, limit, ask) {
  for (let few = FEW; held.length && few < limit; few *= TIMES) {
    const entries = await ask(few);
    if (entries.some(among(held))) return merged(entries, held, limit);
    if (entries.length < few) return entries; // that is all there is
  }
  return ask(limit);
}

/** Entries before those held that are not among them; `held` itself if there is none. At most `limit`. */
export function merged(entries, held, limit) {
  const isHeld = among(held);
  const newer = entries.filter((entry) => !isHeld(entry));
  return newer.length ? [...newer, ...held].slice(0, limit) : held;
}

// No entry has an id: one that is the same is one that says the same.
function among(held) {
  const texts = new Set(held.map((entry) => JSON.stringify(entry)));
  return (entry) => texts.has(JSON.stringify(entry));
}
