// A table whose columns sort and whose rows are kept: an update changes the text of cells and moves rows, so that
// scroll position, selection and focus stay where they are.
//
// A column is {id, label, numeric, value(row), show(cell, row)}: `value` is what is sorted by, `show` writes the cell.
// `key(row)` names a row over updates.

import { element, setAttribute, setText } from "../lib/dom.js";

// More rows than this are added on demand: the document would be slow before a reader has use for them.
const ROWS_AT_FIRST = 500;

const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

export class DataTable {
  #rows = [];
  #shown = new Map();
  // The row that each line shows: sorting and searching write nothing anew.
  #written = new WeakMap();
  #limit = ROWS_AT_FIRST;
  #heads = new Map();

  constructor(table, { columns, key, sort, empty }) {
    this.table = table;
    this.columns = [];
    this.key = key;
    this.sort = sort;
    this.empty = element("p", { class: "nothing", hidden: true }, empty);
    this.more = element("button", { class: "button quiet more", type: "button", hidden: true });
    this.more.addEventListener("click", () => {
      this.#limit = Infinity;
      this.#render();
    });
    this.first = sort;
    this.head = element("tr");
    this.body = element("tbody");
    table.append(element("thead", {}, this.head), this.body);
    table.after(this.empty, this.more);
    this.setColumns(columns);
  }

  /** Show these columns from the next update on. The lines are made anew only if the columns are others than before. */
  setColumns(columns) {
    const told = (ones) => JSON.stringify(ones.map(({ id, numeric }) => [id, Boolean(numeric)]));
    const same = told(columns) === told(this.columns);
    this.columns = columns;
    if (same) return;
    if (!columns.some((column) => column.id === this.sort.column)) this.sort = this.first;
    this.#heads.clear();
    this.#shown.clear();
    this.body.replaceChildren();
    this.head.replaceChildren(...columns.map((column) => this.#head(column)));
    this.#markSort();
  }

  /** Show these rows in place of those before, or of them only those that `keeps` keeps. Returns how many. */
  update(rows, keeps = () => true) {
    this.#rows = rows.filter(keeps);
    setAttribute(this.table, "aria-busy", "false");
    this.#render();
    return this.#rows.length;
  }

  #head(column) {
    const button = element("button", { type: "button" }, column.label);
    button.addEventListener("click", () => this.#sortBy(column));
    const head = element(
      "th",
      { scope: "col", class: column.numeric ? "number" : null, "data-column": column.id },
      button,
    );
    this.#heads.set(column.id, head);
    return head;
  }

  #sortBy(column) {
    const again = this.sort.column === column.id;
    // The first click shows what is looked for most: the largest numbers, the first names.
    this.sort = { column: column.id, descending: again ? !this.sort.descending : Boolean(column.numeric) };
    this.#markSort();
    this.#render();
    this.table.parentElement.scrollTop = 0;
  }

  #markSort() {
    for (const [id, head] of this.#heads) {
      if (id === this.sort.column) head.setAttribute("aria-sort", this.sort.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }

  #sorted(rows) {
    const { value } = this.columns.find((column) => column.id === this.sort.column);
    const direction = this.sort.descending ? -1 : 1;
    return rows
      .map((row) => [value(row), row])
      .sort(([a], [b]) => {
        const aMissing = a === null || a === undefined || Number.isNaN(a);
        const bMissing = b === null || b === undefined || Number.isNaN(b);
        if (aMissing || bMissing) return aMissing - bMissing; // what is missing comes last in both directions
        return (
          direction * (typeof a === "number" && typeof b === "number" ? a - b : collator.compare(String(a), String(b)))
        );
      })
      .map(([, row]) => row);
  }

  #render() {
    const kept = this.#sorted(this.#rows);
    const wanted = new Map(kept.slice(0, this.#limit).map((row) => [this.key(row), row]));
    for (const [key, line] of this.#shown) {
      if (!wanted.has(key)) {
        line.remove();
        this.#shown.delete(key);
      }
    }
    const places = new Map([...this.body.children].map((line, index) => [line, index]));
    const lines = [...wanted].map(([key, row]) => this.#lineOf(key, row));
    const focused = document.activeElement;
    const staying = rising(lines, (line) => places.get(line));
    let next = null;
    for (const line of lines.toReversed()) {
      if (!staying.has(line)) this.body.insertBefore(line, next);
      next = line;
    }
    if (focused.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
    this.empty.hidden = kept.length > 0;
    this.more.hidden = kept.length <= this.#limit;
    setText(this.more, `Show all ${kept.length.toLocaleString()} rows`);
  }

  /** A row as a line, with what the row has. */
  #lineOf(key, row) {
    const line = this.#shown.get(key) ?? this.#line(key);
    if (this.#written.get(line) !== row) {
      this.columns.forEach((column, index) => column.show(line.children[index], row));
      this.#written.set(line, row);
    }
    return line;
  }

  #line(key) {
    const cells = this.columns.map((column, index) =>
      index === 0 ? element("th", { scope: "row" }) : element("td", { class: column.numeric ? "number" : null }),
    );
    const line = element("tr", {}, ...cells);
    this.#shown.set(key, line);
    return line;
  }
}

/**
 * A longest selection of lines whose places rise: they stay, and all others are moved between them. A line without a
 * place is new. Moved lines cost most of a new version: they are styled and laid out anew.
 */
function rising(lines, placeOf) {
  const ends = []; // of the selections of 1, 2, 3... lines, each the one with the lowest place
  const previous = new Map();
  for (const line of lines) {
    const place = placeOf(line);
    if (place === undefined) continue;
    let [low, high] = [0, ends.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (placeOf(ends[middle]) < place) low = middle + 1;
      else high = middle;
    }
    previous.set(line, ends[low - 1]);
    ends[low] = line;
  }
  const selected = new Set();
  for (let line = ends.at(-1); line; line = previous.get(line)) selected.add(line);
  return selected;
}
