// What the bots have and hold: the four sums at the top of the page, the table of bots, the table of holdings.

import { botColumns, holdingColumns } from "./columns.js";
import { byId, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";
import { DataTable } from "./table.js";

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
    setText(byId("bots-count"), format.count(all.length));
    setText(byId("holdings-count"), format.count(holdings.length));
  }
}

function showSums(summary, bots, symbols) {
  const pnl = summary.pnl_today;
  const opened = summary.total_equity - pnl;
  setText(byId("tile-equity"), format.money(summary.total_equity));
  setText(byId("tile-equity-note"), `over ${plural(bots, "bot")}`);
  setText(byId("tile-pnl"), format.gain(pnl));
  setAttribute(byId("tile-pnl"), "data-sign", pnl > 0 ? "up" : pnl < 0 ? "down" : "flat");
  setText(byId("tile-pnl-note"), opened > 0 ? `${format.percentChange(pnl / opened)} on the day` : "");
  setText(byId("tile-bots"), format.count(summary.active_bots));
  setText(byId("tile-bots-note"), `of ${format.count(bots)}`);
  setText(byId("tile-positions"), format.count(summary.open_positions));
  setText(byId("tile-positions-note"), `${plural(symbols, "symbol")} held`);
}

const plural = (number, noun) => `${format.count(number)} ${noun}${number === 1 ? "" : "s"}`;
