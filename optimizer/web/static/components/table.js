// A table whose columns sort and whose rows are kept: an update changes the text of cells and moves rows, so that
// scroll position, selection and focus stay where they are.
//
// A column is {id, label, numeric, value(row), show(cell, row)}: `value` is the sort key, `show` writes the cell. A
// numeric column may have `text(value)`, which makes it as wide as its widest value, in view or not. `key(row)`
// identifies a row over updates. Of a long table (`isLong`) only the rows in view are in the document; screen readers
// and keys treat it as if all were.

import { element, setAttribute } from "../lib/dom.js";
import { addColumnCue } from "./cue.js";
import { RowWindow } from "./window.js";

const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
const FOCUSABLE = "a, button";

export class DataTable {
  // The sorted rows, and the position of each by its key.
  #order = [];
  #places = new Map();
  #rows = [];
  #isFirst = null;
  #shown = new Map();
  // The row that each line shows, so that sorting and searching rewrite no line.
  #written = new WeakMap();
  // The last position of a line, and the key of its row.
  #indexes = new WeakMap();
  #keys = new WeakMap();
  #heads = new Map();
  #window = null;

  constructor(table, { columns, key, sort, empty, isLong = false, onSort = () => {} }) {
    this.table = table;
    this.columns = [];
    this.key = key;
    this.sort = sort;
    this.onSort = onSort;
    this.empty = element("p", { class: "nothing", hidden: true }, empty);
    this.first = sort;
    this.head = element("tr", { "aria-rowindex": isLong ? 1 : null });
    this.body = element("tbody");
    table.append(element("thead", {}, this.head), this.body);
    table.after(this.empty);
    if (isLong) {
      this.#window = new RowWindow(table.parentElement, table, () => this.#render());
      this.body.addEventListener("keydown", (event) => this.#key(event));
    }
    this.setColumns(columns);
    addColumnCue(table);
  }

  /** Show these columns from the next update on. The lines are rebuilt only if the columns have changed. */
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

  /** Replace the rows by these, sorted; rows for which `isFirst` is true come before all others. */
  update(rows, isFirst = null) {
    this.#rows = rows;
    this.#isFirst = isFirst;
    setAttribute(this.table, "aria-busy", "false");
    this.#fit();
    this.#arrange();
  }

  /** Sort by a column, from the next update on; by the first one if there is no such column. */
  setSort(sort) {
    const isKnown = this.columns.some(({ id }) => id === sort?.column);
    this.sort = isKnown ? sort : this.first;
    this.#markSort();
  }

  /** Show the rows from the first one on. */
  scrollUp() {
    if (this.#window) this.#window.scrollTo(0);
    else this.table.parentElement.scrollTop = 0;
  }

  /** Rewrite all lines, as if their rows had changed. */
  rewrite() {
    this.#written = new WeakMap();
    this.#render();
  }

  #head(column) {
    const button = element("button", { type: "button", title: column.title }, column.label);
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
    // The first click shows the values of most interest: the largest numbers, the first names.
    this.sort = { column: column.id, descending: again ? !this.sort.descending : Boolean(column.numeric) };
    this.#markSort();
    this.scrollUp();
    this.#arrange();
    this.onSort(this.sort);
  }

  #markSort() {
    for (const [id, head] of this.#heads) {
      if (id === this.sort.column) head.setAttribute("aria-sort", this.sort.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }

  #fit() {
    for (const { id, numeric, value, text } of this.columns) {
      if (!numeric || !text) continue;
      const lengths = extremes(this.#rows.map(value)).map((one) => text(one).length);
      const { style } = this.#heads.get(id);
      // Never narrower than before, since the columns beside it would move.
      const length = Math.max(...lengths, Number(style.getPropertyValue("--characters")));
      style.setProperty("--characters", length);
    }
  }

  #arrange() {
    this.#order = this.#sorted(this.#rows);
    this.#places = new Map(this.#order.map((row, index) => [this.key(row), index]));
    this.empty.hidden = this.#order.length > 0;
    this.#render();
  }

  #sorted(rows) {
    const { value } = this.columns.find((column) => column.id === this.sort.column);
    const direction = this.sort.descending ? -1 : 1;
    const first = this.#isFirst ?? (() => false);
    return rows
      .map((row) => [value(row), row, first(row)])
      .sort(([a, , aFirst], [b, , bFirst]) => {
        if (aFirst !== bFirst) return bFirst - aFirst;
        const aMissing = a === null || a === undefined || Number.isNaN(a);
        const bMissing = b === null || b === undefined || Number.isNaN(b);
        if (aMissing || bMissing) return aMissing - bMissing; // missing values come last in both directions
        return (
          direction * (typeof a === "number" && typeof b === "number" ? a - b : collator.compare(String(a), String(b)))
        );
      })
      .map(([, row]) => row);
  }

  #render() {
    const count = this.#order.length;
    const [start, end] = this.#window?.range(count) ?? [0, count];
    const indexes = this.#window ? withFocused(start, end, this.#focusedIndex()) : [...this.#order.keys()];
    const wanted = new Map(indexes.map((index) => [this.key(this.#order[index]), index]));
    for (const [key, line] of this.#shown) {
      if (!wanted.has(key)) {
        line.remove();
        this.#shown.delete(key);
      }
    }
    const places = new Map([...this.body.children].map((line, index) => [line, index]));
    const lines = [...wanted].map(([key, index]) => this.#lineOf(key, index));
    const focused = document.activeElement;
    const staying = rising(lines, (line) => places.get(line));
    let next = null;
    for (const line of lines.toReversed()) {
      if (!staying.has(line)) this.body.insertBefore(line, next);
      next = line;
    }
    if (focused.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
    if (!this.#window) return;
    setAttribute(this.table, "aria-rowcount", count + 1);
    const above = indexes.filter((index) => index < start).length;
    const below = indexes.filter((index) => index >= end).length;
    this.#window.leaveSpace(start - above, count - end - below);
  }

  /** The position of the row that has the focus, which stays in the document wherever it is. */
  #focusedIndex() {
    const line = this.body.contains(document.activeElement) ? document.activeElement.closest("tr") : null;
    return line ? this.#places.get(this.#keys.get(line)) : undefined;
  }

  /** A line for a row, with the row's content. */
  #lineOf(key, index) {
    const row = this.#order[index];
    const line = this.#shown.get(key) ?? this.#line(key);
    if (this.#written.get(line) !== row) {
      this.columns.forEach((column, nth) => column.show(line.children[nth], row));
      this.#written.set(line, row);
    }
    if (this.#window && this.#indexes.get(line) !== index) {
      line.setAttribute("aria-rowindex", index + 2);
      this.#indexes.set(line, index);
    }
    return line;
  }

  #line(key) {
    const cells = this.columns.map((column, index) =>
      index === 0 ? element("th", { scope: "row" }) : element("td", { class: column.numeric ? "number" : null }),
    );
    const line = element("tr", {}, ...cells);
    this.#shown.set(key, line);
    this.#keys.set(line, key);
    return line;
  }

  /** Arrow and page keys go from row to row, also to rows that are not in the document yet. */
  #key(event) {
    const index = this.#focusedIndex();
    if (index === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Tab") return this.#reveal(index); // the browser goes to the adjacent rows next
    const last = this.#order.length - 1;
    const { page } = this.#window;
    const to = {
      ArrowDown: index + 1,
      ArrowUp: index - 1,
      PageDown: index + page,
      PageUp: index - page,
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined || event.shiftKey) return;
    event.preventDefault();
    const focusables = (line) => [...line.querySelectorAll(FOCUSABLE)];
    const nth = focusables(event.target.closest("tr")).indexOf(event.target);
    const wanted = Math.max(0, Math.min(last, to));
    this.#reveal(wanted);
    focusables(this.#shown.get(this.key(this.#order[wanted])))[nth]?.focus();
  }

  #reveal(index) {
    this.#window.reveal(index);
    this.#render();
  }
}

/** The numbers with the longest texts: those with the largest and the least absolute value above 0; 0 without any. */
function extremes(values) {
  let [largest, least] = [0, Infinity];
  for (const value of values) {
    if (!Number.isFinite(value) || value === 0) continue;
    if (Math.abs(value) > Math.abs(largest)) largest = value;
    if (Math.abs(value) < Math.abs(least)) least = value;
  }
  return [largest, Number.isFinite(least) ? least : 0];
}

/** The indexes from `start` to before `end`, and `focused` (the row that has the focus) unless it is undefined. */
function withFocused(start, end, focused) {
  const indexes = Array.from({ length: end - start }, (_, nth) => start + nth);
  if (focused < start) indexes.unshift(focused);
  if (focused >= end) indexes.push(focused); // false for undefined
  return indexes;
}

/**
 * A longest increasing subsequence of the lines' positions: these lines stay, and all others are moved between them. A
 * line without a position is new. Moving lines is most of the cost of a new version: they are styled and laid out
 * again.
 */
function rising(lines, placeOf) {
  const ends = []; // for each length 1, 2, 3..., the end of the subsequence with the lowest last position
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
