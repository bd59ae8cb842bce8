// Addresses within the page: `#/symbol/AAPL` is the page of a symbol; anything else is the overview, or a place in it.
// The view of the table of predictions is in the query, by the API's names, so that a symbol's page keeps it:
// `?search=AA&sentiment=bearish&min_confidence=0.8&sort=-expected_move`. Defaults are omitted.

const SYMBOL = "#/symbol/";

/** The address of a symbol's page. */
export const symbolAddress = (symbol) => SYMBOL + encodeURIComponent(symbol);

/** The symbol whose page an address names, or null. */
export function symbolOf(hash) {
  const text = hash.startsWith(SYMBOL) ? hash.slice(SYMBOL.length) : "";
  try {
    return decodeURIComponent(text) || null;
  } catch {
    return text; // typed by hand, with a % that begins no code
  }
}

/** The default view of the table of predictions; `sort` is null for the table's default order. */
export const START = { search: "", sentiment: "", minConfidence: 0, sort: null };

/** The view of the table of predictions in the query of an address; unusable values become the default. */
export function viewOf(query) {
  const values = new URLSearchParams(query);
  const sort = values.get("sort");
  const confidence = Number(values.get("min_confidence"));
  return {
    search: values.get("search") ?? START.search,
    sentiment: values.get("sentiment") ?? START.sentiment,
    minConfidence: confidence > 0 && confidence <= 1 ? confidence : START.minConfidence,
    sort: sort ? { column: sort.replace(/^-/, ""), descending: sort.startsWith("-") } : START.sort,
  };
}

/** The address of this page with another view; the rest of its query stays. */
export function viewAddress({ search, sentiment, minConfidence, sort }) {
  const address = new URL(location.href);
  const values = {
    search,
    sentiment,
    min_confidence: minConfidence || "",
    sort: sort ? (sort.descending ? "-" : "") + sort.column : "",
  };
  for (const [name, value] of Object.entries(values)) {
    if (value === "") address.searchParams.delete(name);
    else address.searchParams.set(name, value);
  }
  return address.href;
}
