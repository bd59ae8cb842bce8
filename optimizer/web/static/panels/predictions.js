// The predictions: their table, the search in it (`/` goes there, Escape clears it), the filters by sentiment and
// confidence, and index records of symbols beyond the table. All choices are in the page's address.

import { contradictionOf, pinnable, predictionColumns, recordColumns, tone } from "../components/columns.js";
import { DataTable } from "../components/table.js";
import { get, Problem } from "../lib/api.js";
import { byId, element, setAttribute, setText } from "../lib/dom.js";
import * as format from "../lib/format.js";
import { allPins, isPinned, onPins } from "../lib/pins.js";
import { START, viewAddress, viewOf } from "../lib/route.js";

// Unknown words are counted separately; the last button is shown only if there are any.
const SENTIMENTS = { "": "All", bullish: "Bullish", bearish: "Bearish", neutral: "Neutral", other: "Other" };
const TONES = { bullish: "up", bearish: "down", neutral: "flat", other: "other" };
const SORT = { column: "confidence", descending: true };
// All typing is one step of the browser's history, and browsers allow few changes of an address in a second.
const TYPING_MS = 300;
const LONGEST_SYMBOL = 1_024;
const PINS_ASKED = 20; // with each version

export class Predictions {
  #records = null; // before the first version
  #view = chosen();
  #isTyping = false;
  #typed = null;
  #asked = 0;

  constructor() {
    this.table = new DataTable(byId("predictions"), {
      columns: predictionColumns,
      key: (record) => record.symbol,
      sort: SORT,
      empty: "No prediction matches.",
      isLong: true,
      onSort: (sort) => this.#choose({ sort: isStart(sort) ? START.sort : sort }),
    });
    this.search = byId("search");
    this.confidence = byId("min-confidence");
    this.buttons = Object.entries(SENTIMENTS).map(([value, label]) => this.#button(value, label));
    byId("sentiments").append(...this.buttons);
    this.search.addEventListener("input", () => this.#type());
    this.search.addEventListener("keydown", (event) => this.#empty(event));
    this.confidence.addEventListener("input", () => this.#type());
    for (const input of [this.search, this.confidence]) {
      input.addEventListener("change", () => {
        this.#keep();
        this.#isTyping = false;
      });
    }
    document.addEventListener("keydown", (event) => this.#goThere(event));
    addEventListener("popstate", () => this.#read());
    onPins(() => {
      this.#filter();
      this.table.rewrite();
      this.#lookBeyond();
    });
    this.#showView();
  }

  /** Replace the records. Only lines whose record is a different object are rewritten. */
  update(records) {
    if (records === this.#records) return;
    this.#records = records;
    this.table.setColumns(recordColumns(records));
    this.table.setSort(this.#view.sort);
    this.#count();
    this.#filter();
    this.#lookBeyond();
  }

  // What is chosen ----------------------------------------------------------------------------------------------------

  #choose(change) {
    this.#keep();
    this.#isTyping = false;
    this.#view = { ...this.#view, ...change };
    const address = viewAddress(this.#view);
    if (address !== location.href) history.pushState(null, "", address);
    this.#showView();
    this.#filter();
  }

  #type() {
    const percent = this.confidence.valueAsNumber;
    const minConfidence = percent > 0 && percent <= 100 ? Number((percent / 100).toFixed(8)) : START.minConfidence;
    this.#view = { ...this.#view, search: this.search.value.trim(), minConfidence };
    clearTimeout(this.#typed);
    this.#typed = setTimeout(() => this.#keep(), TYPING_MS);
    this.table.scrollUp();
    this.#filter();
  }

  /** Write the typed text into the address, the first time as a new step of the history. */
  #keep() {
    if (this.#typed === null) return;
    clearTimeout(this.#typed);
    this.#typed = null;
    const address = viewAddress(this.#view);
    if (address !== location.href) history[this.#isTyping ? "replaceState" : "pushState"](null, "", address);
    this.#isTyping = true;
    this.#lookBeyond();
  }

  /** Show what the address says. */
  #read() {
    const view = chosen();
    if (JSON.stringify(view) === JSON.stringify(this.#view)) return;
    clearTimeout(this.#typed);
    this.#typed = null;
    this.#isTyping = false;
    this.#view = view;
    this.table.setSort(view.sort);
    this.#showView();
    this.#filter();
    this.#lookBeyond();
  }

  #showView() {
    const { search, sentiment, minConfidence } = this.#view;
    if (this.search.value.trim() !== search) this.search.value = search;
    this.confidence.value = minConfidence ? String(Number((100 * minConfidence).toFixed(6))) : "";
    for (const one of this.buttons) one.setAttribute("aria-pressed", String(one.value === sentiment));
  }

  #button(value, label) {
    const button = element("button", { type: "button", value }, `${label} `, element("span", { class: "faint" }));
    button.addEventListener("click", () => {
      this.table.scrollUp();
      this.#choose({ sentiment: value });
    });
    return button;
  }

  // What is shown -----------------------------------------------------------------------------------------------------

  /** The numbers beside the buttons, and the number of records that contradict themselves. */
  #count() {
    const words = new Map();
    let contradictions = 0;
    for (const record of this.#records) {
      words.set(record.sentiment, (words.get(record.sentiment) ?? 0) + 1);
      if (contradictionOf(record)) contradictions += 1;
    }
    const others = [...words.keys()].filter((word) => tone(word) === "other");
    for (const button of this.buttons) {
      const wanted = ([word]) => button.value === "" || tone(word) === TONES[button.value];
      const number = [...words].filter(wanted).reduce((sum, [, count]) => sum + count, 0);
      setText(button.lastElementChild, format.count(number));
      if (button.value !== "other") continue;
      // A single unknown word is shown as it is; if there are several, the tooltip has all.
      button.firstChild.data = `${others.length === 1 ? others[0] : SENTIMENTS.other} `;
      setAttribute(button, "title", others.join(", "));
      button.hidden = number === 0;
      if (button.hidden && this.#view.sentiment === "other") {
        this.#view = { ...this.#view, sentiment: "" };
        history.replaceState(null, "", viewAddress(this.#view));
        this.#showView();
      }
    }
    const one = contradictions === 1;
    setText(
      byId("predictions-note"),
      contradictions
        ? `≠ marks ${format.count(contradictions)} prediction${one ? "" : "s"} where the engine's sentiment and its ` +
            "price disagree: bearish with a prediction above the last price, or bullish with one below."
        : "",
    );
  }

  #filter() {
    if (this.#records === null) return;
    const { search, minConfidence } = this.#view;
    const words = search.toLocaleLowerCase();
    const matches = (text) => text.toLocaleLowerCase().includes(words);
    const fits = this.#fits();
    const shown = this.#records.filter(
      (record) =>
        record.confidence >= minConfidence &&
        fits(record) &&
        (words === "" || matches(record.symbol) || matches(record.sentiment)),
    );
    this.table.update(shown, ({ symbol }) => isPinned(symbol));
    this.#linkExport();
    const total = this.#records.length;
    const all = format.count(total);
    setText(byId("predictions-count"), shown.length === total ? all : `${format.count(shown.length)} of ${all}`);
  }

  /** Whether a record has the sentiment that is chosen. */
  #fits() {
    const wanted = TONES[this.#view.sentiment];
    return (record) => wanted === undefined || tone(record.sentiment) === wanted;
  }

  /** The downloaded file matches the chosen sentiment if the engine has one word for it: the API filters by words. */
  #linkExport() {
    const { sentiment, minConfidence } = this.#view;
    const words = new Set(this.#records.filter(this.#fits()).map((record) => record.sentiment.toLowerCase()));
    const [word] = TONES[sentiment] && words.size === 1 ? words : [];
    const query = new URLSearchParams();
    if (word !== undefined) query.set("sentiment", word);
    if (minConfidence) query.set("min_confidence", minConfidence);
    setAttribute(byId("predictions-csv"), "href", `predictions.csv${query.size ? `?${query}` : ""}`);
    const told =
      (word === undefined ? "all predictions" : `predictions that are ${word}`) +
      (minConfidence ? ` from ${format.percent(minConfidence)} confidence on` : "");
    setText(byId("predictions-csv-note"), ` of ${told}`);
    setAttribute(byId("predictions-csv"), "title", `Download ${told} as CSV`);
  }

  /** Show index records of the searched symbol and of pinned symbols that are not in the table. */
  async #lookBeyond() {
    if (this.#records === null) return;
    const asked = (this.#asked += 1);
    const held = new Set(this.#records.map(({ symbol }) => symbol));
    const pins = allPins().filter((symbol) => !held.has(symbol));
    const { search } = this.#view;
    const names = [search, search.toLocaleUpperCase()];
    const isAsked = search !== "" && search.length <= LONGEST_SYMBOL && !names.some((name) => held.has(name));
    const [found, ...pinned] = await Promise.all([
      isAsked ? firstRecord(names) : null,
      ...pins.slice(0, PINS_ASKED).map((symbol) => firstRecord([symbol])),
    ]);
    if (asked !== this.#asked) return;
    const all = `Beyond the top ${format.count(held.size)}`;
    const box = byId("predictions-beyond");
    const focused = box.contains(document.activeElement) ? document.activeElement : null;
    const lines = [
      found && line(`${all}, the index has `, found.symbol, found),
      ...pins.map((symbol, nth) => symbol !== found?.symbol && line(`${all}, pinned: `, symbol, pinned[nth])),
    ];
    box.replaceChildren(...lines.filter(Boolean));
    if (!focused) return;
    const again = [...box.querySelectorAll("button")].find(({ value }) => value === focused.value);
    (again ?? this.search).focus();
  }

  // Keys --------------------------------------------------------------------------------------------------------------

  #empty(event) {
    if (event.key !== "Escape") return;
    this.search.value = "";
    this.#type();
  }

  #goThere(event) {
    if (byId("overview").hidden) return;
    const typing = event.target.closest("input, textarea, select, dialog");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.search.focus();
  }
}

/** The record of the first of these symbols that the index has, or null. */
async function firstRecord(symbols) {
  for (const symbol of new Set(symbols)) {
    try {
      return await get(`predictions/${encodeURIComponent(symbol)}`);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem; // else there is no record, or a notice says what is wrong
    }
  }
  return null;
}

/** A line of a record beyond the table. */
function line(before, symbol, record) {
  const name = element("span");
  pinnable(name, symbol);
  const told = record ? `confidence ${format.percent(record.confidence)}, ${record.sentiment}` : "no record now";
  return element("span", { class: "beyond-line" }, before, name, ` ${told}`);
}

/** The view in the address, without a sentiment that has no button. */
function chosen() {
  const view = viewOf(location.search);
  return { ...view, sentiment: Object.hasOwn(SENTIMENTS, view.sentiment) ? view.sentiment : START.sentiment };
}

const isStart = ({ column, descending }) => column === SORT.column && descending === SORT.descending;
