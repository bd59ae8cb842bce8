// The columns of the page's tables: their values, their sort keys, and the look of their cells. A gain has a sign and
// a sentiment a word; colour only repeats them.

import { element, setAttribute, setText } from "../lib/dom.js";
import * as format from "../lib/format.js";
import { isPinned, togglePin } from "../lib/pins.js";
import { symbolAddress } from "../lib/route.js";
import { changesText } from "./counts.js";

// The known words of engines for sentiments; any other word is shown as it is, without a sign or a colour.
const TONES = new Map([
  ["bullish", "up"],
  ["positive", "up"],
  ["bearish", "down"],
  ["negative", "down"],
  ["neutral", "flat"],
]);
const SIGNS = { up: "▲", down: "▼", flat: "●", other: "" };

/** `up`, `down` or `flat` for a sentiment that is known, `other` for any other word. */
export const tone = (sentiment) => TONES.get(String(sentiment).toLowerCase()) ?? "other";

/** The difference of the prediction to the last price, as a share of that price. */
const expectedMove = (record) => record.prediction / record.last_price - 1;

/** Describes that a record's expected move contradicts its sentiment; "" if it does not. */
export function contradictionOf(record) {
  const move = expectedMove(record);
  const isAgainst = { up: move < 0, down: move > 0 }[tone(record.sentiment)] ?? false;
  return isAgainst ? `${record.sentiment}, but predicted ${move > 0 ? "above" : "below"} the last price` : "";
}

export const predictionColumns = [
  {
    id: "symbol",
    label: "Symbol",
    value: (record) => record.symbol,
    show: (cell, record) => pinnable(cell, record.symbol),
  },
  {
    id: "confidence",
    label: "Confidence",
    numeric: true,
    value: (record) => record.confidence,
    show: (cell, record) => bar(cell, record.confidence, format.percent(record.confidence)),
  },
  {
    id: "sentiment",
    label: "Sentiment",
    value: (record) => record.sentiment,
    show: (cell, record) => badge(cell, tone(record.sentiment), record.sentiment),
  },
  {
    id: "last_price",
    label: "Last",
    numeric: true,
    value: (record) => record.last_price,
    text: format.price,
    show: (cell, record) => moving(cell, record.last_price, format.price),
  },
  {
    id: "prediction",
    label: "Prediction",
    numeric: true,
    value: (record) => record.prediction,
    text: format.price,
    show: (cell, record) => number(cell, record.prediction, format.price),
  },
  {
    id: "expected_move",
    label: "Expected move",
    title: "The prediction against the last price; not what the price has done since yesterday",
    numeric: true,
    value: expectedMove,
    text: format.percentChange,
    show: (cell, record) => move(cell, record),
  },
  {
    id: "target_price",
    label: "Target",
    numeric: true,
    value: (record) => record.target_price,
    text: format.price,
    show: (cell, record) => number(cell, record.target_price, format.price),
  },
  {
    id: "stop_loss",
    label: "Stop loss",
    numeric: true,
    value: (record) => record.stop_loss,
    text: format.price,
    show: (cell, record) => number(cell, record.stop_loss, format.price),
  },
  {
    id: "timestamp",
    label: format.IS_UTC ? "Time (UTC)" : "Time",
    value: (record) => format.instant(record.timestamp)?.getTime() ?? record.timestamp,
    show: (cell, record) => time(cell, record.timestamp),
  },
];

/** The columns of records: of all their fields, then of the extra fields that they have. */
export const recordColumns = (records) => [...withOthers(predictionColumns, records), ...extraColumns(records)];

/** These columns, and a plain one for each field of the rows that none of them shows. */
export function withOthers(columns, rows) {
  const shown = new Set(["extra", ...columns.map(({ id }) => id)]);
  const others = Object.keys(rows[0] ?? {}).filter((field) => !shown.has(field));
  const label = (field) => field.charAt(0).toUpperCase() + field.slice(1).replaceAll("_", " ");
  return [...columns, ...others.map((field) => plainColumn(field, label(field), rows, (row) => row[field] ?? null))];
}

/** The columns of extra fields; each record of a version has all of them, possibly as null. */
function extraColumns(records) {
  return Object.keys(records[0]?.extra ?? {}).map((field) =>
    plainColumn(`extra.${field}`, field, records, (record) => record.extra?.[field] ?? null),
  );
}

function plainColumn(id, label, rows, value) {
  const values = rows.map(value).filter((one) => one !== null);
  return {
    id,
    label,
    numeric: values.length > 0 && values.every((one) => typeof one === "number"),
    text: format.quantity,
    value,
    show: (cell, row) => plain(cell, value(row)),
  };
}

export const botColumns = [
  { id: "name", label: "Bot", value: (bot) => bot.name, show: (cell, bot) => name(cell, bot.name) },
  {
    id: "enabled",
    label: "State",
    value: (bot) => (bot.enabled ? "Active" : "Paused"),
    show: (cell, bot) => badge(cell, bot.enabled ? "on" : "off", bot.enabled ? "Active" : "Paused"),
  },
  {
    id: "equity",
    label: "Equity",
    numeric: true,
    value: (bot) => bot.equity,
    show: (cell, bot) => number(cell, bot.equity, format.money),
  },
  {
    id: "pnl_today",
    label: "P&L today",
    numeric: true,
    value: (bot) => bot.pnl_today,
    show: (cell, bot) => signed(cell, bot.pnl_today, format.gain),
  },
  {
    id: "positions",
    label: "Positions",
    numeric: true,
    value: (bot) => bot.positions,
    show: (cell, bot) => setText(cell, format.count(bot.positions)),
  },
  {
    id: "last_updated",
    label: "Updated",
    value: (bot) => format.instant(bot.last_updated)?.getTime() ?? bot.last_updated,
    show: (cell, bot) => time(cell, bot.last_updated),
  },
];

const cost = (holding) => (holding.avg === null ? null : holding.qty * holding.avg);

export const holdingColumns = [
  {
    id: "symbol",
    label: "Symbol",
    value: (holding) => holding.symbol,
    show: (cell, holding) => symbolLink(cell, holding.symbol),
  },
  {
    id: "side",
    label: "Side",
    value: (holding) => (holding.qty < 0 ? "Short" : "Long"),
    show: (cell, holding) => setText(cell, holding.qty < 0 ? "Short" : "Long"),
  },
  {
    id: "qty",
    label: "Quantity",
    numeric: true,
    value: (holding) => holding.qty,
    show: (cell, holding) => number(cell, holding.qty, format.quantity),
  },
  {
    id: "avg",
    label: "Average cost",
    numeric: true,
    value: (holding) => holding.avg,
    show: (cell, holding) => number(cell, holding.avg, format.price),
  },
  {
    id: "cost",
    label: "Cost",
    numeric: true,
    value: cost,
    show: (cell, holding) => number(cell, cost(holding), format.money),
  },
];

/** The columns of one symbol's versions; a version without the symbol has no values. */
export const versionColumns = [
  {
    id: "timestamp",
    label: "From",
    value: (point) => format.instant(point.timestamp)?.getTime(),
    show: (cell, point) => time(cell, point.timestamp),
  },
  {
    id: "confidence",
    label: "Confidence",
    numeric: true,
    value: (point) => point.confidence,
    show: (cell, point) => setText(cell, point.confidence === null ? "left" : format.percent(point.confidence)),
  },
  {
    id: "prediction",
    label: "Prediction",
    numeric: true,
    value: (point) => point.prediction,
    show: (cell, point) => setText(cell, format.price(point.prediction)),
  },
  {
    id: "last_price",
    label: "Last",
    numeric: true,
    value: (point) => point.last_price,
    show: (cell, point) => setText(cell, format.price(point.last_price)),
  },
  {
    id: "version",
    label: "Version",
    numeric: true,
    value: (point) => point.version,
    show: (cell, point) => setText(cell, String(point.version)),
  },
];

const rejected = (report) => report.stats?.records_rejected;

// The changes of a run in words; null if it published nothing, and for the first version.
const changedBy = ({ changes }) => (changes ? changesText(changes) || "content as before" : null);

// The full error of a failed run is under the last errors.
const why = ({ reason, error, details }) => reason ?? error ?? details ?? null;

export const runColumns = [
  {
    id: "timestamp",
    label: "Ended",
    value: (report) => format.instant(report.timestamp)?.getTime(),
    show: (cell, report) => time(cell, report.timestamp),
  },
  {
    id: "status",
    label: "Outcome",
    value: (report) => report.status,
    show: (cell, report) => badge(cell, report.status, report.status),
  },
  {
    id: "seconds",
    label: "Duration",
    numeric: true,
    value: (report) => report.stats?.seconds,
    show: (cell, report) => setText(cell, format.runTime(report.stats?.seconds)),
  },
  {
    id: "rate",
    label: "MB/s",
    numeric: true,
    value: (report) => report.stats?.json_mb_per_s,
    show: (cell, report) => setText(cell, format.measured(report.stats?.json_mb_per_s)),
  },
  {
    id: "memory",
    label: "Peak MB",
    numeric: true,
    value: (report) => report.stats?.peak_rss_mb,
    show: (cell, report) => setText(cell, format.measured(report.stats?.peak_rss_mb)),
  },
  {
    id: "records",
    label: "Records",
    numeric: true,
    value: (report) => report.stats?.records_seen,
    show: (cell, report) => setText(cell, format.count(report.stats?.records_seen)),
  },
  {
    id: "rejected",
    label: "Rejected",
    numeric: true,
    value: rejected,
    show: (cell, report) => setText(cell, format.count(rejected(report))),
  },
  {
    id: "input_age",
    label: "Input age",
    numeric: true,
    value: (report) => report.input_age_s,
    show: (cell, report) => setText(cell, format.duration(report.input_age_s)),
  },
  {
    id: "published_after",
    label: "Published after",
    numeric: true,
    value: (report) => report.published_after_s,
    show: (cell, report) => setText(cell, format.runTime(report.published_after_s)),
  },
  {
    id: "changes",
    label: "Changed",
    value: (report) => changedBy(report),
    show: (cell, report) => setText(cell, changedBy(report) ?? format.MISSING),
  },
  {
    id: "cache",
    label: "Cache",
    value: (report) => report.cache ?? null,
    show: (cell, report) => setText(cell, report.cache ?? format.MISSING),
  },
  {
    id: "why",
    label: "Why",
    value: why,
    show: (cell, report) => plain(cell, why(report)),
  },
];

/** A symbol, which leads to its page. */
function symbolLink(cell, symbol) {
  if (!cell.firstChild) cell.append(element("a", { class: "name" }, element("bdi")));
  setText(cell.firstChild.firstChild, symbol);
  setAttribute(cell.firstChild, "href", symbolAddress(symbol));
  setAttribute(cell.firstChild, "title", symbol);
}

/** A symbol that can be pinned: the button's text is in its style, so that the cell's is the symbol. */
export function pinnable(cell, symbol) {
  symbolLink(cell, symbol);
  if (cell.childElementCount === 1) {
    const button = element("button", { class: "pin", type: "button" });
    button.addEventListener("click", () => togglePin(button.value));
    cell.append(button);
  }
  const pinned = isPinned(symbol);
  setAttribute(cell.lastChild, "value", symbol);
  setAttribute(cell.lastChild, "aria-label", `Pin ${symbol}`);
  setAttribute(cell.lastChild, "aria-pressed", pinned);
  setAttribute(cell.lastChild, "title", pinned ? "Pinned: always first" : "Pin: show always first");
}

/** A name from the data: any text of any length, in any direction of writing. */
function name(cell, text) {
  if (!cell.firstChild) cell.append(element("bdi", { class: "name" }));
  setText(cell.firstChild, text);
  setAttribute(cell.firstChild, "title", text);
}

/** A value as the engine wrote it: text, a number, true or false. */
function plain(cell, value) {
  if (!cell.firstChild) cell.append(element("bdi", { class: "value" }));
  const text = value === null ? format.MISSING : typeof value === "number" ? format.quantity(value) : String(value);
  setText(cell.firstChild, text);
  setAttribute(cell.firstChild, "title", text);
}

function badge(cell, kind, text) {
  if (!cell.firstChild) {
    cell.append(
      element("span", { class: "badge" }, element("span", { class: "sign", "aria-hidden": "true" }), element("bdi")),
    );
  }
  setAttribute(cell.firstChild, "data-kind", kind);
  setText(cell.firstChild.firstChild, SIGNS[kind] ?? SIGNS.flat);
  setText(cell.firstChild.lastChild, text);
}

function bar(cell, share, text) {
  if (!cell.firstChild) {
    cell.append(
      element("span", { class: "gauge" }, element("span", { class: "bar", "aria-hidden": "true" }), element("span")),
    );
  }
  cell.firstChild.style.setProperty("--share", share);
  setText(cell.firstChild.lastChild, text);
}

/** A number; if it is shown by its power of ten, the tooltip has all its digits. */
function number(cell, value, show) {
  const text = show(value);
  setText(cell, text);
  if (format.isShort(value)) cell.removeAttribute("title");
  else setAttribute(cell, "title", format.exact(value));
}

function move(cell, record) {
  const contradiction = contradictionOf(record);
  signed(cell, expectedMove(record), format.percentChange);
  if (contradiction) setAttribute(cell, "title", contradiction);
  cell.toggleAttribute("data-against", contradiction !== "");
}

function signed(cell, value, show) {
  number(cell, value, show);
  setAttribute(cell, "data-sign", value > 0 ? "up" : value < 0 ? "down" : "flat");
}

function time(cell, timestamp) {
  setText(cell, format.time(timestamp));
  setAttribute(cell, "title", format.fullTime(timestamp));
}

// The last value of each cell, to tint it for a moment when the value rises or falls. The tint does not fade: an
// animated color is painted in each frame, which costs a page of 300 prices half a second of CPU.
const MARKED_MS = 1_600;
const before = new WeakMap();
const endings = new WeakMap();

function moving(cell, value, show) {
  const last = before.get(cell);
  before.set(cell, value);
  number(cell, value, show);
  if (last === undefined || last === value) return;
  setAttribute(cell, "data-moved", value > last ? "up" : "down");
  clearTimeout(endings.get(cell));
  endings.set(cell, setTimeout(() => cell.removeAttribute("data-moved"), MARKED_MS));
}
