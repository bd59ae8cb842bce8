// The page: passes the data to the panels that show them, and shows the state of the connection.
//
// Predictions, bots and holdings come through follow.js and nothing else. /status is asked every few seconds besides: it
// knows the age of data that do not change and what a version leaves out, and notices a version that the stream has
// missed.

import { follow } from "./follow.js";
import { get, Problem } from "./lib/api.js";
import { byId, element, setAttribute, setText } from "./lib/dom.js";
import * as format from "./lib/format.js";
import { Changes } from "./panels/changes.js";
import { Freshness } from "./panels/freshness.js";
import { sentence, showNotices, whatToKnow } from "./panels/notices.js";
import { Positions } from "./panels/positions.js";
import { Predictions } from "./panels/predictions.js";
import { Runs } from "./panels/runs.js";
import { SymbolPage } from "./panels/symbol.js";
import { showZone } from "./panels/zone.js";
import { Trigger } from "./panels/trigger.js";

const POLL_MS = 5_000;
const POLL_FAST_MS = 1_000;
const HIDDEN_MS = 60_000;
// The report of a run comes after its version.
const REPORT_MS = 1_000;

const predictions = new Predictions();
const positions = new Positions();
const runs = new Runs();
const changes = new Changes();
const symbolPage = new SymbolPage(showHowThingsStand);
const freshness = new Freshness((level) => {
  showHowThingsStand();
  if (level === "stale") announce("The data are stale.");
});
const trigger = new Trigger(() => {
  refreshStatus();
  refreshRuns();
});

const state = {
  status: null,
  problem: null,
  version: null,
  connection: "connecting",
  dataAt: null,
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
    refreshStatus(); // a new version is a new age
  },
  onState: showConnection,
  onStatus: () => refreshStatus(),
  onError(problem) {
    state.problem = problem;
    showHowThingsStand();
  },
});

// Asking --------------------------------------------------------------------------------------------------------------

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
    positions.leaveOut(status.rejected);
    symbolPage.confirm(status.last_success);
    changes.notice(following.content); // an answer may have been of another version
    if (status.version > (state.version ?? 0)) following.check();
    if (changed) setTimeout(refreshRuns, REPORT_MS);
    if (Date.now() - lastRunsAt > 1000 * Math.max(5, status.interval_s / 2)) refreshRuns();
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
});

let lastRunsAt = 0;
const refreshRuns = once(async () => {
  lastRunsAt = Date.now();
  try {
    await runs.refresh(state.status?.cache_up !== false);
    showHowThingsStand();
  } catch (problem) {
    // The next round asks again, and the notice of /status says what is wrong.
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
  const flower = /^https?:\/\//i.test(status.flower_url ?? "") ? status.flower_url : null;
  byId("flower").hidden = flower === null;
  if (flower) setAttribute(byId("flower"), "href", flower);
}

// A page of one of several sources links to the others: each has a page of its own, at sources/NAME/.
function showSources({ source, sources = [] }) {
  const nav = byId("sources");
  const shown = sources.length < 2 ? "" : [source, ...sources].join(" ");
  if (nav.dataset.shown === shown) return; // links that are made anew would lose the focus
  nav.dataset.shown = shown;
  nav.hidden = shown === "";
  const own = `sources/${source}/`;
  const root = location.pathname.endsWith(own) ? "../../" : "";
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
    live: ["good", "Live"],
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
  if (empty) setText(byId("no-data-text"), sentence(problem.message));
  setAttribute(document.body, "data-state", version !== null ? "ready" : empty ? "empty" : "loading");
  const accept = trigger.allowed ? () => trigger.ask({ accept: true }) : null;
  const notices = whatToKnow({ ...state, ageS: freshness.ageS, lastRun: runs.latest, accept });
  showNotices(notices);
  document.title = [notices[0]?.title.replace(/\.$/, ""), symbolPage.symbol, status?.source, "Rolling Optimizer"]
    .filter(Boolean)
    .slice(0, 2)
    .join(" – ");
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

/** Ask for the status again and again: every five seconds, or four times an interval if that is short. */
async function poll() {
  try {
    if (!document.hidden) await refreshStatus();
  } finally {
    const fourth = (1000 * (state.status?.interval_s ?? Infinity)) / 4;
    setTimeout(poll, Math.max(POLL_FAST_MS, Math.min(POLL_MS, fourth)));
  }
}

showZone();
showHowThingsStand();
symbolPage.open();
poll();
