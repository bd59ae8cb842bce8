// The page: passes the data to the panels that show them, and shows the state of the connection.
//
// Predictions, bots and holdings come only through follow.js. /status is requested too: it has the age of unchanged
// data and the counts of what a version leaves out, and reveals a version that the stream has missed. If all is well,
// that is once a run, soon after it is due, so that an open page transfers little; else every few seconds.

import { follow } from "./follow.js";
import { get, Problem } from "./lib/api.js";
import { byId, element, setAttribute, setText } from "./lib/dom.js";
import * as format from "./lib/format.js";
import { Changes } from "./panels/changes.js";
import { Freshness } from "./panels/freshness.js";
import { docsLink, placeNotices, sentence, sentenceOf, showNotices, whatToKnow } from "./panels/notices.js";
import { Positions } from "./panels/positions.js";
import { showProcesses } from "./panels/processes.js";
import { Predictions } from "./panels/predictions.js";
import { Runs } from "./panels/runs.js";
import { SymbolPage } from "./panels/symbol.js";
import { showZone } from "./panels/zone.js";
import { Trigger } from "./panels/trigger.js";

const POLL_MS = 5_000;
const POLL_FAST_MS = 1_000;
const POLL_CALM_MS = 60_000; // the longest
// The duration of a run: reading a big file takes a while.
const RUN_TAKES = 0.1; // intervals
// After a problem has lasted this long, requests become rarer, so that a page that is open for a weekend transfers
// little.
const LASTING_MS = 10 * 60_000;
const HIDDEN_MS = 60_000;
// The report of a run comes after its version.
const REPORT_MS = 1_000;
// Reports of runs that found nothing new come together.
const RUNS_MS = 120_000;

const predictions = new Predictions();
const positions = new Positions();
const runs = new Runs();
const changes = new Changes();
const symbolPage = new SymbolPage(showHowThingsStand);
const freshness = new Freshness((level) => {
  showHowThingsStand();
  if (level === "stale") announce("The data are stale.");
  if (level !== "fresh") refreshStatus(); // /status says why
});
const trigger = new Trigger(() => {
  refreshStatus();
  refreshRuns();
}, wrong);

const state = {
  status: null,
  problem: null,
  version: null,
  connection: "connecting",
  dataAt: null,
  uneasyAt: null, // when the present notices began, by performance.now()
};

// Data ----------------------------------------------------------------------------------------------------------------

const following = follow("", {
  onVersion(content) {
    state.version = content.version;
    state.dataAt = new Date();
    state.problem = null;
    predictions.update(content.predictions);
    positions.update(content);
    changes.notice(content);
    symbolPage.update(content);
    announce(`Version of ${format.time(content.timestamp)}: ${format.count(content.predictions.length)} predictions.`);
    showHowThingsStand();
    refreshStatus(); // a new version has a new age
  },
  onState: showConnection,
  onStatus: () => refreshStatus(),
  onError(problem) {
    if (problem.status === 503 && state.problem?.body.diagnosis) return; // /status has reported why there is no snapshot
    state.problem = problem;
    showHowThingsStand();
  },
});

// Asking --------------------------------------------------------------------------------------------------------------

/** Requests of the same kind never overlap: a call during a request repeats it once at the end. */
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
    const isNew = state.status !== null && state.status.version !== status.version;
    state.status = status;
    state.problem = null;
    freshness.update(status);
    showStatus(status);
    positions.leaveOut(status.rejected);
    symbolPage.confirm(status.last_success);
    changes.notice(following.content); // a response may have been of another version
    if (status.version > (state.version ?? 0)) following.check();
    if (performance.now() - lastRunsAt > Math.min(RUNS_MS, 4000 * status.interval_s)) refreshRuns();
    if (isNew || status.diagnosis.code === "runs_fail") setTimeout(refreshRuns, REPORT_MS);
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
  showHowThingsStand();
  pollLater();
});

let lastRunsAt = -Infinity;
const refreshRuns = once(async () => {
  lastRunsAt = performance.now();
  try {
    await runs.refresh(state.status?.cache_up !== false);
    showHowThingsStand();
  } catch (problem) {
    // The next round requests it again, and the notice of /status says what is wrong.
    if (!(problem instanceof Problem)) throw problem;
  }
});

// Showing -------------------------------------------------------------------------------------------------------------

function showStatus(status) {
  setText(byId("source"), status.source ?? "Rolling Optimizer");
  setText(
    byId("version"),
    status.version ? `version ${status.version}, made ${format.time(status.generated_at)}` : "no version yet",
  );
  setAttribute(byId("version"), "title", format.fullTime(status.generated_at));
  trigger.allow(status.trigger === true);
  showSources(status);
  showProcesses(status);
  const flower = /^https?:\/\//i.test(status.flower_url ?? "") ? status.flower_url : null;
  byId("flower").hidden = flower === null;
  if (flower) setAttribute(byId("flower"), "href", flower);
}

// The page of one of several sources links to the others' pages, at sources/NAME/.
function showSources({ source, sources = [] }) {
  const nav = byId("sources");
  const shown = sources.length < 2 ? "" : [source, ...sources].join(" ");
  if (nav.dataset.shown === shown) return; // recreated links would lose the focus
  nav.dataset.shown = shown;
  nav.hidden = byId("all-sources").hidden = shown === "";
  const own = `sources/${source}/`;
  const root = location.pathname.endsWith(own) ? "../../" : "";
  setAttribute(byId("all-sources"), "href", `${root}static/sources.html`);
  nav.replaceChildren(
    ...sources.map((name) => {
      const link = element("a", { href: `${root}sources/${name}/` }, name);
      if (name === source) setAttribute(link, "aria-current", "page");
      return link;
    }),
  );
}

function showConnection(connection) {
  const isFoundAgain = connection === "live" && state.connection === "polling";
  state.connection = connection;
  const [level, text] = {
    connecting: ["unknown", "Connecting"],
    live: ["good", "Connected"],
    polling: ["warn", "Reconnecting"],
    closed: ["unknown", "Paused"],
  }[connection];
  setAttribute(byId("connection"), "data-level", level);
  setText(byId("connection-text"), text);
  if (isFoundAgain || connection === "polling") refreshStatus();
}

function showHowThingsStand() {
  const { problem, status, version } = state;
  const empty = problem?.status === 503 && version === null;
  byId("no-data").hidden = !empty;
  if (empty) showCause(problem);
  setAttribute(document.body, "data-state", version !== null ? "ready" : empty ? "empty" : "loading");
  const accept = trigger.allowed ? () => trigger.ask({ accept: true }) : null;
  const notices = whatToKnow({ ...state, lastRun: runs.latest, accept });
  showNotices(notices, document.body.hasAttribute("data-told"));
  // Notices are above the rest, which is therefore not shown before them.
  if (problem || status) setAttribute(document.body, "data-told", "");
  if (!notices.length && !empty) state.uneasyAt = null;
  else state.uneasyAt ??= performance.now();
  document.title = [told(notices[0]), symbolPage.symbol, status?.source, "Rolling Optimizer"]
    .filter(Boolean)
    .slice(0, 2)
    .join(" – ");
}

/** The beginning of the tab's title: the diagnosis if something is wrong, so that it is seen from another tab. */
function told(notice) {
  return (wrong() ?? notice?.title)?.replace(/\.$/, "");
}

/** The server's diagnosis of the source; null if nothing is wrong, or it is not known. */
function wrong() {
  const diagnosis = (state.problem?.body ?? state.status)?.diagnosis;
  return diagnosis && diagnosis.level !== "ok" ? format.inZone(diagnosis.text) : null;
}

/** Show in place of the data why there are none. */
function showCause({ message, body: { diagnosis } }) {
  const text = diagnosis ? sentenceOf(diagnosis) : sentence(message);
  const box = byId("no-data-text");
  const docs = diagnosis?.docs ?? "";
  if (box.dataset.shown === text + docs) return;
  box.dataset.shown = text + docs;
  box.replaceChildren(text, ...(docs ? [" ", docsLink(docs, "What to do")] : []));
}

function announce(text) {
  setText(byId("announcer"), text);
}

// Waking and sleeping -------------------------------------------------------------------------------------------------

// A hidden page closes its stream after a while: browsers open only a few connections to a server.
let hiding = null;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) {
    hiding = setTimeout(() => following.close(), HIDDEN_MS);
  } else {
    following.open();
    refreshStatus();
  }
});

let polling = null;

/** Request the status again after a while, counted from the last response of any request. */
function pollLater() {
  clearTimeout(polling);
  polling = setTimeout(() => (document.hidden ? pollLater() : refreshStatus()), pauseMs());
}

/** If all is well, until the next run should have ended; else five seconds, or a fourth of a short interval. */
function pauseMs() {
  const { status, uneasyAt, connection } = state;
  const intervalMs = 1000 * (status?.interval_s ?? Infinity);
  const shortMs = Math.max(POLL_FAST_MS, Math.min(POLL_MS, intervalMs / 4));
  if (uneasyAt !== null) return performance.now() - uneasyAt > LASTING_MS ? Math.max(shortMs, POLL_CALM_MS / 2) : shortMs;
  if (!status || connection !== "live") return shortMs;
  const dueMs = (1 + RUN_TAKES) * intervalMs - 1000 * freshness.ageS;
  return Math.max(shortMs, Math.min(POLL_CALM_MS, dueMs));
}

showZone();
placeNotices();
showHowThingsStand();
symbolPage.open();
refreshStatus();
