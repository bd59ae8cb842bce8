// The runs: the strip of outcomes, the charts, the last errors in full, and the rejected units with reasons.

import { Chart, drawStrip } from "../components/charts.js";
import { runColumns } from "../components/columns.js";
import { get } from "../lib/api.js";
import { byId, element, setText } from "../lib/dom.js";
import * as format from "../lib/format.js";
import { merged } from "../lib/newest.js";
import { DataTable } from "../components/table.js";
import { docsLink } from "./notices.js";

const LAST = 200;
// The number of runs that read the file, which the charts show.
const LAST_SCANS = 60;
const BLOCKS = 90;
const ERRORS_SHOWN = 5;

const OUTCOMES = ["success", "unchanged", "skipped", "failed"];

// The number of all runs: while the engine is silent, none reads the file.
const INPUT_AGE = {
  title: "Input age",
  series: [{ name: "input age", kind: "line", value: (report) => report.input_age_s, show: format.duration }],
};
// The number of runs that read the file.
const OF_SCANS = [
  {
    title: "Duration",
    series: [{ name: "duration", kind: "line", value: (report) => report.stats.seconds, show: format.runTime }],
  },
  {
    title: "Records",
    series: [
      { name: "records", kind: "line", value: (report) => report.stats.records_seen, show: format.count },
      { name: "rejected", kind: "bars", value: (report) => report.stats.records_rejected, show: format.count },
    ],
  },
];

export class Runs {
  // Reports of runs, and of those that read the file, the newest first.
  #reports = [];
  #scans = [];
  #isShown = false;
  #keys = new Map();

  constructor() {
    this.inputAge = new Chart(byId("charts"), INPUT_AGE);
    this.charts = OF_SCANS.map((chart) => new Chart(byId("charts"), chart));
    this.table = new DataTable(byId("runs"), {
      columns: runColumns,
      key: (report) => this.#keys.get(report),
      sort: { column: "timestamp", descending: true },
      empty: "No run has been reported yet.",
    });
  }

  /** The newest run that was not skipped, and so shows the state of the data. */
  get latest() {
    return this.#reports.find((report) => report.status !== "skipped");
  }

  /**
   * Request reports newer than those in memory, and show them. They are only in Redis: while it is away (`isUp` is
   * false) there are none, and those already shown stay. Throws a Problem.
   */
  async refresh(isUp) {
    const after = this.#reports.length ? `&after=${encodeURIComponent(this.#reports[0].timestamp)}` : "";
    const reports = merged(await asked(`runs?limit=${LAST}${after}`), this.#reports, LAST);
    if ((this.#isShown && reports === this.#reports) || (!reports.length && !isUp)) return;
    this.#isShown = true;
    const known = reports.indexOf(this.#reports[0]);
    this.#scans =
      known < 0
        ? await asked(`runs?status=success&limit=${LAST_SCANS}`)
        : merged(reports.slice(0, known).filter(isScan), this.#scans, LAST_SCANS);
    this.#reports = reports;
    this.#show(reports, this.#scans);
  }

  #show(reports, scans) {
    this.#showOutcomes(reports);
    const measured = scans.filter(isScan);
    byId("charts").hidden = measured.length === 0;
    this.inputAge.update(reports.slice(0, BLOCKS).filter(hasInputAge).toReversed());
    for (const chart of this.charts) chart.update(measured.toReversed());
    // Runs in a chart are in the table too, even if they are older than all other runs there.
    const oldest = reports.at(-1)?.timestamp ?? "";
    const listed = [...reports, ...scans.filter((report) => report.timestamp < oldest)];
    // Two reports with the same time are two rows.
    const seen = new Map();
    this.#keys = new Map(
      listed.map((report) => {
        const nth = seen.get(report.timestamp) ?? 0;
        seen.set(report.timestamp, nth + 1);
        return [report, `${report.timestamp} ${nth}`];
      }),
    );
    this.table.update(listed);
    showErrors(reports);
    showRejects(measured[0]);
  }

  #showOutcomes(reports) {
    const blocks = reports.slice(0, BLOCKS);
    const tally = OUTCOMES.map((status) => [status, blocks.filter((report) => report.status === status).length]).filter(
      ([, number]) => number > 0,
    );
    const told = tally.map(([status, number]) => `${number} ${status}`).join(", ");
    byId("runs-strip").hidden = blocks.length === 0;
    drawStrip(
      byId("runs-strip"),
      blocks.toReversed(),
      blocks.length ? `Last ${blocks.length} runs: ${told}` : "No runs",
    );
    byId("runs-legend").replaceChildren(
      ...tally.map(([status, number]) =>
        element(
          "li",
          {},
          element("span", { class: "swatch", "data-kind": status, "aria-hidden": "true" }),
          `${number} ${status}`,
        ),
      ),
    );
    setText(byId("runs-count"), blocks.length ? `last ${blocks.length}` : "none yet");
  }
}

const asked = async (path) => (await get(path)).runs;

const hasInputAge = (report) => Number.isFinite(report.input_age_s);
const isScan = (report) => report.status === "success" && report.stats?.seconds > 0;

/** Failed runs; consecutive ones with the same error are one. */
function showErrors(reports) {
  const groups = [];
  for (const report of reports.filter((one) => one.status === "failed")) {
    const last = groups.at(-1);
    if (last && last.error === report.error && last.details === report.details) {
      last.times += 1;
      last.first = report.timestamp;
    } else {
      groups.push({
        error: report.error,
        details: report.details,
        latest: report.timestamp,
        first: report.timestamp,
        times: 1,
      });
    }
  }
  const failures = groups.reduce((sum, group) => sum + group.times, 0);
  setText(
    byId("errors-count"),
    reports.length ? `${format.count(failures)} of the last ${format.count(reports.length)} runs` : "",
  );
  byId("errors").replaceChildren(
    ...(groups.length ? groups.slice(0, ERRORS_SHOWN).map(errorItem) : [quiet("No run has failed.")]),
  );
}

function errorItem(group) {
  const when =
    group.times > 1
      ? `${format.count(group.times)} times, ${format.time(group.first)} to ${format.time(group.latest)}`
      : format.time(group.latest);
  return element(
    "li",
    {},
    element(
      "p",
      { class: "error-head" },
      element("strong", {}, group.error ? docsLink(group.error, group.error) : "Failed"),
      element("span", { class: "faint", title: format.fullTime(group.latest) }, when),
    ),
    element("pre", {}, group.details ?? ""),
  );
}

/** The units that the newest run that read the file could not use. */
function showRejects(report) {
  setText(byId("rejects-count"), report ? rejectedOf(report.stats) : "");
  const tallies = report?.rejects ?? [];
  const nothing = report ? "Every record and bot was used." : "No run has read the file yet.";
  byId("rejects").replaceChildren(...(tallies.length ? tallies.map(rejectItem) : [quiet(nothing)]));
}

function rejectedOf({ records_rejected, records_seen, bots_rejected, bots_seen }) {
  const bots = bots_rejected ? `, ${format.count(bots_rejected)} of ${format.count(bots_seen)} bots` : "";
  return `${format.count(records_rejected)} of ${format.count(records_seen)} records${bots} in the last full run`;
}

function rejectItem({ reason, count, first }) {
  const lines = first.map(({ name, where, details }) => `${name ?? "(no name)"} at ${where}: ${details}`);
  const number = `${format.count(count)} rejected${count > first.length ? `, the first ${first.length}` : ""}`;
  return element(
    "li",
    {},
    element("p", { class: "error-head" }, element("strong", {}, reason), element("span", { class: "faint" }, number)),
    element("pre", {}, lines.join("\n")),
  );
}

const quiet = (text) => element("li", { class: "quiet-line" }, text);
