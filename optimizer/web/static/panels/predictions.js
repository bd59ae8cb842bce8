// The predictions: their table, the search over it (`/` goes there, Escape empties it), the filter by sentiment.

import { extraColumns, predictionColumns, tone } from "../components/columns.js";
import { byId, element, setAttribute, setText } from "../lib/dom.js";
import * as format from "../lib/format.js";
import { DataTable } from "../components/table.js";

// Words that are not known are counted apart; the last button is there only if there are any.
const SENTIMENTS = { "": "All", up: "Bullish", down: "Bearish", flat: "Neutral", other: "Other" };

export class Predictions {
  #records = null; // before the first version
  #tone = "";

  constructor() {
    this.table = new DataTable(byId("predictions"), {
      columns: predictionColumns,
      key: (record) => record.symbol,
      sort: { column: "confidence", descending: true },
      empty: "No prediction matches.",
    });
    this.search = byId("search");
    this.buttons = Object.entries(SENTIMENTS).map(([value, label]) => this.#button(value, label));
    byId("sentiments").append(...this.buttons);
    this.search.addEventListener("input", () => this.#filter());
    this.search.addEventListener("keydown", (event) => this.#empty(event));
    document.addEventListener("keydown", (event) => this.#goThere(event));
  }

  /** Show these records in place of those before. Only lines of records that are other objects are written anew. */
  update(records) {
    if (records === this.#records) return;
    this.#records = records;
    this.table.setColumns([...predictionColumns, ...extraColumns(records)]);
    for (const button of this.buttons) {
      const number = records.filter((record) => has(record, button.value)).length;
      setText(button.lastElementChild, format.count(number));
      button.hidden = button.value === "other" && number === 0;
      if (button.hidden && this.#tone === button.value) this.#choose("");
    }
    this.#filter();
  }

  #button(value, label) {
    const attributes = { type: "button", value, "aria-pressed": String(value === this.#tone) };
    const button = element("button", attributes, `${label} `, element("span", { class: "faint" }));
    button.addEventListener("click", () => {
      this.#choose(value);
      this.#filter();
    });
    return button;
  }

  #choose(value) {
    this.#tone = value;
    for (const one of this.buttons) one.setAttribute("aria-pressed", String(one.value === value));
  }

  #filter() {
    if (this.#records === null) return;
    const words = this.search.value.trim().toLocaleLowerCase();
    const matches = (text) => text.toLocaleLowerCase().includes(words);
    const shown = this.table.update(
      this.#records,
      (record) => has(record, this.#tone) && (matches(record.symbol) || matches(record.sentiment)),
    );
    this.#linkExport();
    const total = this.#records.length;
    const all = format.count(total);
    setText(byId("predictions-count"), shown === total ? all : `${format.count(shown)} of ${all}`);
  }

  /** The file has what the buttons show, where it is one word of the engine's: the API filters by words. */
  #linkExport() {
    const fitting = this.#records.filter((record) => has(record, this.#tone));
    const words = new Set(fitting.map(({ sentiment }) => sentiment.toLowerCase()));
    const [word] = this.#tone !== "" && words.size === 1 ? words : [];
    const query = word === undefined ? "" : `?sentiment=${encodeURIComponent(word)}`;
    setAttribute(byId("predictions-csv"), "href", `predictions.csv${query}`);
    const told = word === undefined ? "all predictions" : `predictions that are ${word}`;
    setText(byId("predictions-csv-note"), ` of ${told}`);
    setAttribute(byId("predictions-csv"), "title", `Download ${told} as CSV`);
  }

  #empty(event) {
    if (event.key !== "Escape") return;
    this.search.value = "";
    this.#filter();
  }

  #goThere(event) {
    if (byId("overview").hidden) return;
    const typing = event.target.closest("input, textarea, select, dialog");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.search.focus();
  }
}

const has = (record, wanted) => wanted === "" || tone(record.sentiment) === wanted;
