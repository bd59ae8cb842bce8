// All sources that this service shows, with the diagnosis of each. Each source has its own API, at sources/NAME/, whose
// /status is requested periodically while the page is in view.

import { addColumnCue } from "./components/cue.js";
import { get, Problem } from "./lib/api.js";
import { byId, element, setText } from "./lib/dom.js";
import * as format from "./lib/format.js";
import { docsLink, sentence, sentenceOf } from "./panels/notices.js";
import { showZone } from "./panels/zone.js";

const POLL_MS = 30_000;
const POLL_BAD_MS = 10_000; // while something is wrong

const HEADS = ["Source", "State", "What is wrong, and what to do", "Checked", "Data from"];
const STATES = { ok: ["on", "Well"], warning: ["skipped", "Warning"], bad: ["failed", "Bad"] };

let asking = null;

async function refresh() {
  clearTimeout(asking);
  let isBad = true;
  try {
    if (!document.hidden) isBad = show(await Promise.all((await names()).map(statusOf)));
    byId("away").hidden = true;
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    byId("away").hidden = false;
    setText(byId("away"), `${sentence(problem.message)} The page tries again by itself.`);
  }
  clearTimeout(asking);
  asking = setTimeout(refresh, isBad ? POLL_BAD_MS : POLL_MS);
}

/** The names of all sources, which every source knows, even without data. */
const names = async () => (await answerOf("../status")).sources;

const statusOf = (name) => answerOf(`${addressOf(name)}status`);

const addressOf = (name) => `../sources/${encodeURIComponent(name)}/`;

/** The content of /status, even if there are no data. Throws a Problem. */
async function answerOf(path) {
  try {
    return await get(path);
  } catch (problem) {
    if (problem instanceof Problem && problem.body.diagnosis) return problem.body;
    throw problem;
  }
}

/** Show the states of all sources; returns whether something is wrong with one. */
function show(every) {
  const wrong = every.filter(({ diagnosis }) => diagnosis.level !== "ok");
  const table = byId("sources");
  const shown = JSON.stringify(every.map(({ age_s, input_age_s, ...status }) => status));
  if (table.dataset.shown !== shown) {
    table.dataset.shown = shown; // recreated links would lose the focus
    const focused = document.activeElement?.id;
    const head = element("tr", {}, ...HEADS.map((text) => element("th", { scope: "col" }, element("span", {}, text))));
    table.replaceChildren(table.caption, element("thead", {}, head), element("tbody", {}, ...every.map(row)));
    if (focused) byId(focused)?.focus();
  }
  const told = wrong.length ? `${wrong.length} of ${every.length} sources: ${format.inZone(wrong[0].diagnosis.text)}` : "Sources";
  document.title = `${told} – Rolling Optimizer`;
  return wrong.length > 0;
}

function row({ source, diagnosis, last_success: checkedAt, input_at: inputAt }) {
  const [kind, word] = STATES[diagnosis.level];
  const link = element("a", { href: addressOf(source), id: `source-${source}`, class: "name", title: source }, source);
  const cause = diagnosis.level === "ok" ? [format.MISSING] : [sentenceOf(diagnosis), " "];
  if (diagnosis.docs) cause.push(docsLink(diagnosis.docs, "What to do"));
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, link),
    element("td", {}, element("span", { class: "badge", "data-kind": kind }, word)),
    element("td", {}, ...cause),
    element("td", { title: format.fullTime(checkedAt) }, format.time(checkedAt)),
    element("td", { title: format.fullTime(inputAt) }, format.time(inputAt)),
  );
}

addColumnCue(byId("sources"));
showZone();
document.addEventListener("visibilitychange", () => document.hidden || refresh());
refresh();
