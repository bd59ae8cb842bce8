// The page of one symbol, at `#/symbol/AAPL`: its fields, its rank, and its lines over the known versions.

import { contradictionOf, recordColumns, versionColumns } from "../components/columns.js";
import { StepChart } from "../components/steps.js";
import { DataTable } from "../components/table.js";
import { get, Problem } from "../lib/api.js";
import { byId, element, setAttribute, setText } from "../lib/dom.js";
import * as format from "../lib/format.js";
import { symbolAddress, symbolOf } from "../lib/route.js";

/** The text of a tick: as many digits after the point as the step of the scale has. */
const tickOf = (factor, suffix) => (value, step) => {
  const size = step * factor;
  const exact = (places) => Math.abs(Number(size.toFixed(places)) - size) < size * 1e-6;
  const digits = [...Array(12).keys()].find(exact) ?? 12;
  const fixed = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return (value * factor).toLocaleString(undefined, fixed) + suffix;
};

const CHARTS = [
  {
    title: "Confidence",
    series: [{ name: "confidence", value: (point) => point.confidence }],
    show: format.percent,
    showTick: tickOf(100, "%"),
  },
  {
    title: "Price",
    series: [
      { name: "prediction", value: (point) => point.prediction },
      { name: "last", value: (point) => point.last_price },
    ],
    show: format.price,
    showTick: tickOf(1, ""),
  },
];

export class SymbolPage {
  // The symbol of the address; null while the overview is shown.
  symbol = null;
  #content = null;
  #until = 0;
  #points = [];
  #left = { scroll: 0, link: null };
  #asked = 0;
  // Whether a request failed, and is repeated with the next confirmation.
  #failed = false;

  /** `onRoute` is called when the address names another symbol, or none. */
  constructor(onRoute) {
    this.onRoute = onRoute;
    this.title = byId("symbol-title");
    this.charts = CHARTS.map((chart) => new StepChart(byId("symbol-charts"), chart));
    this.table = new DataTable(byId("symbol-versions"), {
      columns: versionColumns,
      key: (point) => point.version,
      sort: { column: "timestamp", descending: true },
      empty: "No versions.",
    });
    addEventListener("hashchange", () => this.#route());
    byId("skip").addEventListener("click", (event) => {
      if (this.symbol === null) return;
      event.preventDefault(); // its address would leave this page
      this.title.focus();
    });
  }

  /** Go where the address leads; call it once, when the page is made. */
  open() {
    if (symbolOf(location.hash) !== null) this.#route();
  }

  /** Show the content of a version, as follow.js has it. */
  update(content) {
    this.#content = content;
    if (this.symbol !== null) this.#load();
  }

  /** Draw the lines up to the time at which a run last made or confirmed the values. */
  confirm(timestamp) {
    this.#until = Date.parse(timestamp) || 0;
    if (this.symbol === null) return;
    this.#draw();
    if (this.#failed) this.#load();
  }

  #route() {
    const symbol = symbolOf(location.hash);
    if (symbol === this.symbol) return;
    // The link that was pressed, if there was one.
    if (this.symbol === null) this.#left = { scroll: scrollY, link: document.activeElement };
    this.symbol = symbol;
    byId("symbol-page").hidden = symbol === null;
    byId("overview").hidden = symbol !== null;
    setText(byId("skip"), symbol === null ? "Skip to the predictions" : "Skip to the symbol");
    this.onRoute();
    if (symbol === null) return this.#return();
    setText(this.title.firstChild, symbol);
    this.#clear();
    scrollTo(0, 0);
    this.title.focus({ preventScroll: true });
    this.#load();
  }

  /** Back to the overview: to a place in it that the address names, or to where the reader has left it. */
  #return() {
    const place = document.getElementById(location.hash.slice(1));
    const { link, scroll } = this.#left;
    if (place) {
      place.scrollIntoView();
      return place.focus();
    }
    scrollTo(0, scroll);
    if (link?.isConnected && link !== document.body) link.focus({ preventScroll: true });
    else byId("predictions-title").focus({ preventScroll: true });
  }

  #clear() {
    byId("symbol-fields").replaceChildren();
    setText(byId("symbol-rank"), "");
    setText(byId("symbol-note"), "");
    this.#showPoints([], "");
  }

  async #load() {
    const asked = (this.#asked += 1);
    const { symbol } = this;
    const rank = this.#content?.predictions.findIndex((record) => record.symbol === symbol) ?? -1;
    const path = `predictions/${encodeURIComponent(symbol)}`;
    // The known data at once; the rest when it arrives, unless the reader has gone to another page.
    if (rank >= 0) this.#showRecord(this.#content.predictions[rank], rank);
    const [record, history] = await Promise.all([
      rank >= 0 ? this.#content.predictions[rank] : answerOf(path),
      answerOf(`${path}/history`),
    ]);
    if (asked !== this.#asked || symbol !== this.symbol) return;
    const isFailure = (answer) => answer instanceof Problem && answer.status !== 404;
    this.#failed = isFailure(record) || isFailure(history);
    // The present content stays until there is a response.
    if (!(isFailure(record) && byId("symbol-fields").firstChild)) {
      if (record instanceof Problem) this.#showNone(record, history);
      else if (rank < 0) this.#showRecord(record, rank);
    }
    if (!(isFailure(history) && this.#points.length)) this.#showHistory(record, history);
  }

  #showRecord(record, rank) {
    const columns = [
      ...recordColumns([record]).filter(({ id }) => id !== "symbol"),
      { id: "held", label: "Held", show: (cell) => setText(cell, this.#held()) },
    ];
    const box = byId("symbol-fields");
    // The cells are kept while the fields are the same, so that a changed price is highlighted.
    const told = JSON.stringify(columns.map(({ id, label }) => [id, label]));
    if (box.dataset.fields !== told || !box.firstChild) {
      box.dataset.fields = told;
      box.replaceChildren(
        ...columns.map(({ label }) => element("div", {}, element("dt", {}, element("bdi", {}, label)), element("dd"))),
      );
    }
    columns.forEach((column, index) => column.show(box.children[index].lastElementChild, record));
    const all = this.#content?.predictions.length ?? 0;
    setText(
      byId("symbol-rank"),
      rank < 0
        ? `outside of the ${format.count(all)} predictions`
        : `rank ${format.count(rank + 1)} of ${format.count(all)}`,
    );
    const contradiction = contradictionOf(record);
    setText(byId("symbol-note"), contradiction && `≠ The engine says ${contradiction}: its two values disagree.`);
  }

  /** The quantity that the bots hold, and its average cost. */
  #held() {
    const holding = this.#content?.holdings.find(({ symbol }) => symbol === this.symbol);
    if (!holding) return format.MISSING;
    return format.quantity(holding.qty) + (holding.avg === null ? "" : ` at ${format.price(holding.avg)}`);
  }

  #showNone(problem, history) {
    byId("symbol-fields").replaceChildren();
    setText(byId("symbol-rank"), "");
    const gone = !(history instanceof Problem);
    const text =
      problem.status !== 404
        ? `Its record cannot be read: ${problem.message}.`
        : gone
          ? "The current version has no record of it any more."
          : "No such symbol: neither the current version nor one before it, of those held, has a record of it.";
    const held = this.#held();
    const holding = held === format.MISSING ? "" : ` The bots hold ${held}.`;
    byId("symbol-note").replaceChildren(text, holding, ...this.#similar());
  }

  /** A symbol that differs only in upper and lower case. */
  #similar() {
    const plain = this.symbol.toLocaleLowerCase();
    const found = this.#content?.predictions.find(({ symbol }) => symbol.toLocaleLowerCase() === plain);
    return found ? [" Did you mean ", element("a", { href: symbolAddress(found.symbol) }, found.symbol), "?"] : [];
  }

  #showHistory(record, history) {
    if (!(history instanceof Problem)) return this.#showPoints(history.points ?? [], "");
    const known = !(record instanceof Problem);
    this.#showPoints(
      [],
      history.status !== 404
        ? `The history cannot be read: ${history.message}.`
        : known
          ? "No history: it was not among the predictions in any version that is held."
          : "No history.",
    );
  }

  #showPoints(points, note) {
    this.#points = points;
    this.#draw();
    this.table.update(points);
    byId("symbol-charts").hidden = byId("symbol-table").hidden = note !== "";
    setText(byId("symbol-history-note"), note);
    const [first] = points;
    const since = first ? `${changesSince(points.length - 1)} since ${format.time(first.timestamp)}` : "";
    setText(byId("symbol-history-count"), since);
    setAttribute(byId("symbol-history-count"), "title", first ? format.fullTime(first.timestamp) : "");
  }

  #draw() {
    for (const chart of this.charts) chart.update(this.#points, this.#until);
  }
}

const changesSince = (number) =>
  number === 0 ? "unchanged" : `${format.count(number)} change${number === 1 ? "" : "s"}`;

/** The response of the API, or its Problem. */
async function answerOf(path) {
  try {
    return await get(path);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    return problem;
  }
}
