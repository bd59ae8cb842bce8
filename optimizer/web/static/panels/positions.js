// The bots and holdings: the four sums at the top of the page, the table of bots, the table of holdings.

import { botColumns, holdingColumns, withOthers } from "../components/columns.js";
import { byId, setAttribute, setText } from "../lib/dom.js";
import * as format from "../lib/format.js";
import { DataTable } from "../components/table.js";

export class Positions {
  #content = null;
  #rejected = null;
  #rows = new WeakMap();

  constructor() {
    this.bots = new DataTable(byId("bots"), {
      columns: botColumns,
      key: (bot) => bot.name,
      sort: { column: "equity", descending: true },
      empty: "No bots.",
      isLong: true,
    });
    this.holdings = new DataTable(byId("holdings"), {
      columns: holdingColumns,
      key: (holding) => holding.symbol,
      sort: { column: "symbol", descending: false },
      empty: "No holdings.",
      isLong: true,
    });
  }

  /** Show the bots and holdings of a version. */
  update(content) {
    const last = this.#content;
    this.#content = content;
    if (content.bots !== last?.bots) {
      const rows = [...content.bots].map(([name, bot]) => this.#row(name, bot));
      this.bots.setColumns(withOthers(botColumns, rows));
      this.bots.update(rows);
    }
    if (content.holdings !== last?.holdings) {
      this.holdings.setColumns(withOthers(holdingColumns, content.holdings));
      this.holdings.update(content.holdings);
    }
    this.#showSums();
  }

  /** Show beside the sums what the version leaves out, by the data of /status. */
  leaveOut(rejected) {
    this.#rejected = rejected;
    if (this.#content) this.#showSums();
  }

  // A bot that has not changed keeps its row, so that its line is not written anew.
  #row(name, bot) {
    if (!this.#rows.has(bot)) this.#rows.set(bot, { name, ...bot });
    return this.#rows.get(bot);
  }

  #showSums() {
    const { bots, holdings } = this.#content;
    const left = leftOut(this.#rejected);
    const { equity, pnl, active, positions } = sumsOf(bots);
    const opened = equity - pnl;
    // Without bots there is no sum, as opposed to a sum of 0.
    setText(byId("tile-equity"), bots.size ? format.money(equity) : format.MISSING);
    setNote(byId("tile-equity-note"), bots.size ? `over ${plural(bots.size, "bot")}` : "no bots", left);
    setText(byId("tile-pnl"), bots.size ? format.gain(pnl) : format.MISSING);
    setAttribute(byId("tile-pnl"), "data-sign", pnl > 0 ? "up" : pnl < 0 ? "down" : "flat");
    setNote(byId("tile-pnl-note"), opened > 0 ? `${format.percentChange(pnl / opened)} on the day` : "", left);
    setText(byId("tile-bots"), format.count(active));
    setNote(byId("tile-bots-note"), `of ${format.count(bots.size)}`, left);
    setText(byId("tile-positions"), format.count(positions));
    setNote(byId("tile-positions-note"), `${plural(holdings.length, "symbol")} held`, left);
    setNote(byId("bots-count"), format.count(bots.size), left);
    setNote(byId("holdings-count"), format.count(holdings.length), left);
  }
}

/** Sums over all bots; a value that a bot lacks counts as 0, as in the summary of /page. */
function sumsOf(bots) {
  const sums = { equity: 0, pnl: 0, active: 0, positions: 0 };
  for (const bot of bots.values()) {
    sums.equity += bot.equity ?? 0;
    sums.pnl += bot.pnl_today ?? 0;
    sums.active += bot.enabled;
    sums.positions += bot.positions;
  }
  return sums;
}

/** Which bots the sums leave out, because they could not be used; "" if none. */
function leftOut(rejected) {
  const bots = rejected?.bots;
  return bots?.rejected ? `${format.count(bots.rejected)} of ${plural(bots.seen, "bot")} left out` : "";
}

/** A note beside a sum, with what the sum leaves out. */
function setNote(node, text, left) {
  setText(node, [text, left].filter(Boolean).join(" · "));
  setAttribute(node, "data-level", left ? "warn" : "good");
}

const plural = (number, noun) => `${format.count(number)} ${noun}${number === 1 ? "" : "s"}`;
