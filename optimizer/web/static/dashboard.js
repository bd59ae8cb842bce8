// The page: asks the API, hands what comes to the rooms that show it, and says how things stand.
//
// The stream of versions says when to ask for data. /status is asked every few seconds all the same: it knows the age of
// data that do not change, and notices a version that a broken stream did not tell.

import { get, getVersioned, Live, Problem } from "./api.js";
import { botColumns, holdingColumns, predictionColumns, tone } from "./columns.js";
import { byId, element, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";
import { Freshness } from "./freshness.js";
import { Runs, RUNS_ASKED } from "./runs.js";
import { DataTable } from "./table.js";
import { Trigger } from "./trigger.js";

const POLL_MS = 5_000;
const POLL_FAST_MS = 1_000;
const HIDDEN_MS = 60_000;
const SENTIMENTS = [["", "All"], ["up", "Bullish"], ["down", "Bearish"], ["flat", "Neutral"]];

const runs = new Runs();
const freshness = new Freshness((level) => {
  showNotices();
  if (level === "stale") announce("The data are stale.");
});
const trigger = new Trigger(() => {
  refreshStatus();
  refreshRuns();
});
const live = new Live({
  onVersion: (version) => {
    noticeVersion(version);
    refreshStatus(); // a new version is a new age
  },
  onCache: () => refreshStatus(),
  onState: showConnection,
});

const predictions = new DataTable(byId("predictions"), {
  columns: predictionColumns, key: (record) => record.symbol, sort: { column: "confidence", descending: true },
  empty: "No prediction matches.",
});
const bots = new DataTable(byId("bots"), {
  columns: botColumns, key: (bot) => bot.name, sort: { column: "equity", descending: true }, empty: "No bots.",
});
const holdings = new DataTable(byId("holdings"), {
  columns: holdingColumns, key: (holding) => holding.symbol, sort: { column: "symbol", descending: false }, empty: "No holdings.",
});

const state = { status: null, problem: null, version: null, records: [], sentiment: "", connection: "connecting", dataAt: null };

// Asking ---------------------------------------------------------------------------------------------------------------

/** Runs of the same question never overlap: one that comes meanwhile is asked once more at the end. */
function once(ask) {
  let running = false;
  let again = false;
  return async () => {
    again = running;
    if (running) return;
    running = true;
    try {
      do {
        again = false;
        await ask();
      } while (again);
    } finally {
      running = false;
    }
  };
}

const refreshStatus = once(async () => {
  try {
    const status = await get("status");
    const changed = state.status?.last_success !== status.last_success;
    state.status = status;
    state.problem = null;
    freshness.update(status);
    showStatus(status);
    noticeVersion(status.version);
    if (changed || Date.now() - lastRunsAt > 1000 * Math.max(5, status.interval_s / 2)) refreshRuns();
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    state.problem = problem;
    // With no snapshot at all, the problem may still say whether runs can be started.
    if (problem.status === 503) {
      freshness.update(null);
      showStatus(problem.body);
      refreshRuns();
    }
  }
  showNotices();
});

const refreshData = once(async () => {
  try {
    const [{ body: page }, { body: whole, version }] = await Promise.all([getVersioned("page"), getVersioned("predictions")]);
    // A version may come between the two: then the older one counts, and the newer is asked for when it is noticed.
    state.version = Math.min(page.version, version ?? page.version);
    state.dataAt = new Date();
    state.records = whole.predictions;
    showPage(page);
    showPredictions();
    announce(`Version of ${format.time(page.timestamp)}: ${format.count(whole.predictions.length)} predictions.`);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    state.problem = problem;
  } finally {
    asking = null;
  }
  showNotices();
});

let lastRunsAt = 0;
const refreshRuns = once(async () => {
  lastRunsAt = Date.now();
  try {
    const reports = (await get(`runs?limit=${RUNS_ASKED}`)).runs;
    // The reports live in Redis alone: while that is away there are none, and those already shown stay.
    if (reports.length || state.status?.cache_up !== false) runs.update(reports);
    showNotices();
  } catch (problem) {
    // The next round asks again, and the notice of /status says what is wrong.
    if (!(problem instanceof Problem)) throw problem;
  }
});

// The stream and /status tell of the same version: it is asked for once.
let asking = null;
function noticeVersion(version) {
  if (version === state.version || version === asking) return;
  asking = version;
  refreshData();
}

// Showing --------------------------------------------------------------------------------------------------------------

function showStatus(status) {
  setText(byId("source"), status.source ?? "Rolling Optimizer");
  setText(byId("version"), status.version ? `version ${status.version}, made ${format.time(status.generated_at)}` : "no version yet");
  setAttribute(byId("version"), "title", format.fullTime(status.generated_at));
  trigger.allow(status.trigger === true);
  const flower = /^https?:\/\//i.test(status.flower_url ?? "") ? status.flower_url : null;
  byId("flower").hidden = flower === null;
  if (flower) setAttribute(byId("flower"), "href", flower);
}

function showPage({ summary, bots: botsByName, holdings: held }) {
  const all = Object.entries(botsByName).map(([name, bot]) => ({ name, ...bot }));
  setText(byId("tile-equity"), format.money(summary.total_equity));
  setText(byId("tile-equity-note"), `over ${plural(all.length, "bot")}`);
  setText(byId("tile-pnl"), format.gain(summary.pnl_today));
  setAttribute(byId("tile-pnl"), "data-sign", summary.pnl_today > 0 ? "up" : summary.pnl_today < 0 ? "down" : "flat");
  const opened = summary.total_equity - summary.pnl_today;
  setText(byId("tile-pnl-note"), opened > 0 ? `${format.percentChange(summary.pnl_today / opened)} on the day` : "");
  setText(byId("tile-bots"), format.count(summary.active_bots));
  setText(byId("tile-bots-note"), `of ${format.count(all.length)}`);
  setText(byId("tile-positions"), format.count(summary.open_positions));
  setText(byId("tile-positions-note"), `${plural(held.length, "symbol")} held`);
  bots.update(all);
  holdings.update(held);
  setText(byId("bots-count"), format.count(all.length));
  setText(byId("holdings-count"), format.count(held.length));
}

function showPredictions() {
  predictions.update(state.records);
  filterPredictions();
  for (const button of byId("sentiments").children) {
    const number = state.records.filter((record) => matchesTone(record, button.value)).length;
    setText(button.lastElementChild, format.count(number));
  }
}

const matchesTone = (record, wanted) => wanted === "" || tone(record.sentiment) === wanted;

function filterPredictions() {
  const words = byId("search").value.trim().toLocaleLowerCase();
  const shown = predictions.filter((record) => matchesTone(record, state.sentiment)
    && (record.symbol.toLocaleLowerCase().includes(words) || record.sentiment.toLocaleLowerCase().includes(words)));
  const total = state.records.length;
  setText(byId("predictions-count"), shown === total ? format.count(total) : `${format.count(shown)} of ${format.count(total)}`);
}

function showConnection(connection) {
  if (connection === "live" && state.connection === "lost") refreshStatus();
  state.connection = connection;
  const [level, text] = { connecting: ["unknown", "Connecting"], live: ["good", "Live"], lost: ["warn", "Reconnecting"] }[connection];
  setAttribute(byId("connection"), "data-level", level);
  setText(byId("connection-text"), text);
  if (connection === "lost") refreshStatus();
}

/** What a person has to know before believing the numbers, the worst first. */
function showNotices() {
  const notices = [];
  const { problem, status } = state;
  const shown = state.dataAt ? ` What you see was read at ${format.time(state.dataAt.getTime())}.` : "";
  if (problem && problem.status !== 503) {
    notices.push(["bad", "The API is away.", `${sentence(problem.message)} The page tries again by itself.${shown}`]);
  } else if (problem && state.version !== null) {
    notices.push(["bad", "There is no snapshot now.", `${sentence(problem.message)}${shown}`]);
  }
  if (!problem && status) {
    const age = freshness.ageS;
    if (status.stale || age > 3 * status.interval_s) {
      notices.push(["bad", "The data are stale.", `No run has made or confirmed them for ${format.duration(age)}; one is due every ` +
        `${format.duration(status.interval_s)}. Are the worker and beat running?`]);
    }
    const failed = runs.latest?.status === "failed" ? runs.latest : null;
    if (failed) {
      notices.push(["warn", "The last run failed.", `${failed.error} at ${format.time(failed.timestamp)}; what it said is under Last errors.`]);
    }
    if (status.origin === "files") {
      notices.push(["warn", "Redis is away.", `Read from the snapshot files, which are whole; live updates may wait until it is back.`]);
    } else if (!status.cache_up) {
      notices.push(["warn", "Redis is away.", "The last snapshot read from it is shown; live updates wait until it is back."]);
    }
  }
  const empty = problem?.status === 503 && state.version === null;
  byId("no-data").hidden = !empty;
  if (empty) setText(byId("no-data-text"), sentence(problem.message));
  setAttribute(document.body, "data-state", state.version !== null ? "ready" : empty ? "empty" : "loading");
  const key = notices.map(([, title]) => title).join(" ");
  const box = byId("notices");
  // The same notices with a new age change in place, so that they are not read out again each time.
  if (box.dataset.key !== key) {
    box.dataset.key = key;
    box.replaceChildren(...notices.map(([level, title]) => element("p", { class: "notice", "data-level": level },
      element("strong", {}, title), " ", element("span", { "aria-live": "off" }))));
  }
  notices.forEach(([, , text], index) => setText(box.children[index].lastElementChild, text));
  const source = status?.source ?? "Rolling Optimizer";
  document.title = notices.length ? `${notices[0][1].replace(/\.$/, "")} – ${source}` : `${source} – Rolling Optimizer`;
}

function announce(text) {
  setText(byId("announcer"), text);
}

const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);
const plural = (number, noun) => `${format.count(number)} ${noun}${number === 1 ? "" : "s"}`;

// Hands and keys -------------------------------------------------------------------------------------------------------

for (const [value, label] of SENTIMENTS) {
  const button = element("button", { type: "button", value, "aria-pressed": String(value === "") }, `${label} `,
    element("span", { class: "faint" }));
  button.addEventListener("click", () => {
    state.sentiment = value;
    for (const one of byId("sentiments").children) one.setAttribute("aria-pressed", String(one === button));
    filterPredictions();
  });
  byId("sentiments").append(button);
}
byId("search").addEventListener("input", filterPredictions);
byId("search").addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  byId("search").value = "";
  filterPredictions();
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, dialog");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  byId("search").focus();
});

// A page that nobody sees lets its stream go after a while: browsers open only a few connections to a server.
let hiding = null;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) {
    hiding = setTimeout(() => live.close(), HIDDEN_MS);
  } else {
    live.open();
    refreshStatus();
  }
});
/** Ask for the status again and again: every five seconds, or four times an interval where that is short. */
async function poll() {
  try {
    if (!document.hidden) await refreshStatus();
  } finally {
    const fourth = (1000 * (state.status?.interval_s ?? Infinity)) / 4;
    setTimeout(poll, Math.max(POLL_FAST_MS, Math.min(POLL_MS, fourth)));
  }
}

showNotices();
poll();
live.open();
