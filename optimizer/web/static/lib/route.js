// Addresses within the page: `#/symbol/AAPL` is the page of a symbol; anything else is the overview, or a place in it.

const SYMBOL = "#/symbol/";

/** The overview's address. */
export const OVERVIEW = "#/";

/** The address of a symbol's page. */
export const symbolAddress = (symbol) => SYMBOL + encodeURIComponent(symbol);

/** The symbol whose page an address names, or null. */
export function symbolOf(hash) {
  const text = hash.startsWith(SYMBOL) ? hash.slice(SYMBOL.length) : "";
  try {
    return decodeURIComponent(text) || null;
  } catch {
    return text; // typed by hand: a % that begins no code
  }
}
