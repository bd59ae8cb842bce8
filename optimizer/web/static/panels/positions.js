// What the bots have and hold: the four sums at the top of the page, the table of bots, the table of holdings.

import { botColumns, holdingColumns } from "../components/columns.js";
import { byId, setAttribute, setText } from "../lib/dom.js";
import * as format from "../lib/format.js";
import { DataTable } from "../components/table.js";

export class Positions {
  constructor() {
    this.bots = new DataTable(byId("bots"), {
      columns: botColumns,
      key: (bot) => bot.name,
      sort: { column: "equity", descending: true },
      empty: "No bots.",
    });
    this.holdings = new DataTable(byId("holdings"), {
      columns: holdingColumns,
      key: (holding) => holding.symbol,
      sort: { column: "symbol", descending: false },
      empty: "No holdings.",
    });
  }

  /** Show what /page says. */
  update({ summary, bots, holdings }) {
    const all = Object.entries(bots).map(([name, bot]) => ({ name, ...bot }));
    showSums(summary, all.length, holdings.length);
    this.bots.update(all);
    this.holdings.update(holdings);
    const left = leftOut(summary);
    setNote(byId("bots-count"), format.count(all.length), left);
    setNote(byId("holdings-count"), format.count(holdings.length), left);
  }
}

function showSums(summary, bots, symbols) {
  const pnl = summary.pnl_today;
  const opened = summary.total_equity - pnl;
  const left = leftOut(summary);
  setText(byId("tile-equity"), format.money(summary.total_equity));
  setNote(byId("tile-equity-note"), `over ${plural(bots, "bot")}`, left);
  setText(byId("tile-pnl"), format.gain(pnl));
  setAttribute(byId("tile-pnl"), "data-sign", pnl > 0 ? "up" : pnl < 0 ? "down" : "flat");
  setNote(byId("tile-pnl-note"), opened > 0 ? `${format.percentChange(pnl / opened)} on the day` : "", left);
  setText(byId("tile-bots"), format.count(summary.active_bots));
  setNote(byId("tile-bots-note"), `of ${format.count(bots)}`, left);
  setText(byId("tile-positions"), format.count(summary.open_positions));
  setNote(byId("tile-positions-note"), `${plural(symbols, "symbol")} held`, left);
}

/** Which bots the sums leave out, because they could not be used; "" if none. */
function leftOut({ rejected }) {
  const bots = rejected?.bots;
  return bots?.rejected ? `${format.count(bots.rejected)} of ${plural(bots.seen, "bot")} left out` : "";
}

/** A note beside a sum, with what the sum leaves out. */
function setNote(node, text, left) {
  setText(node, [text, left].filter(Boolean).join(" · "));
  setAttribute(node, "data-level", left ? "warn" : "good");
}

const plural = (number, noun) => `${format.count(number)} ${noun}${number === 1 ? "" : "s"}`;
