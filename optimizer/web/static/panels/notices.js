// Warnings about the numbers. The first one is the server's diagnosis of the source, word for word as everywhere else,
// except for the time zone; then what it does not cover: that the API is away, a pin, fields of bots with other names.

import { byId, element, setAttribute, setText } from "../lib/dom.js";
import * as format from "../lib/format.js";
import { isAcceptable } from "./trigger.js";

const FROM_FILES = "Read from the snapshot files, which are whole; live updates may wait until Redis has the version.";
const LINE = 24; // pixels that a notice may grow by
const LEVELS = { warning: "warn", bad: "bad" };

/**
 * The notices of a state, the worst first, each {level, title, text}, and perhaps {docs} and {action: {label, press}}.
 * `accept` opens the dialog that starts a run which accepts its input; null where no run can be started.
 */
export function whatToKnow({ problem, status, version, dataAt, lastRun, accept }) {
  const shown = dataAt ? ` What you see was read at ${format.time(dataAt.getTime())}.` : "";
  if (problem) return ofProblem(problem, version, shown);
  if (!status) return [];
  const notices = [];
  if (LEVELS[status.diagnosis.level]) notices.push(ofDiagnosis(status, lastRun, accept));
  if (status.bots_lack_fields) {
    const { bots } = status.rejected;
    const text =
      `${format.count(bots.without_fields)} of ${format.count(bots.seen)} bots have none. If theirs have other ` +
      "names, set ROLLING_BOT_FIELDS, which is suggested by: rolling-optimizer inspect";
    notices.push({ level: "warn", title: "Most bots have no value in any field that is read.", text });
  }
  if (status.pinned) notices.push(ofPin(status));
  if (status.origin === "files" && status.cache_up) {
    notices.push({ level: "warn", title: "The version is not in Redis.", text: FROM_FILES });
  }
  return notices;
}

/** Text and advice of a diagnosis, as one. */
export const sentenceOf = ({ text, advice }) => format.inZone([text, advice].filter(Boolean).join(" "));

/** A link to the entry of a diagnosis (its `docs`), or of an error, in the documentation that is served here. */
export const docsLink = (docs, text) =>
  element("a", { href: new URL(`../help.html#${docs.split("#").at(-1)}`, import.meta.url).href }, text);

function ofDiagnosis({ diagnosis, stale, origin }, lastRun, accept) {
  const { code, level, docs } = diagnosis;
  const failed = code === "runs_fail" && lastRun?.status === "failed" ? lastRun : null;
  const isToAccept = accept && failed && !failed.updated && isAcceptable(failed.error);
  return {
    level: LEVELS[level],
    title: stale ? "The data are stale." : titleOf(code, failed),
    text: sentenceOf(diagnosis) + (code === "redis_away" && origin === "files" ? ` ${FROM_FILES}` : ""),
    docs: failed?.error ?? docs,
    action: isToAccept ? { label: "Accept this input…", press: accept } : null,
  };
}

function titleOf(code, failed) {
  if (failed?.updated) return "An update was dropped.";
  if (failed?.error === "GuardRefused") return "A guard refused the last run.";
  return { redis_away: "Redis is away.", runs_fail: "The last run failed.", input_old: "The engine is silent." }[code] ?? "";
}

function ofPin({ pinned, restored_from }) {
  const restored = restored_from ? ` It is what version ${restored_from} was.` : "";
  const text =
    `Since ${format.time(pinned.at)} by ${pinned.by}: runs do not replace it.${restored} ` +
    "To let them again: rolling-optimizer unpin";
  return { level: "warn", title: "The version is pinned.", text };
}

function ofProblem(problem, version, shown) {
  if (problem.status === 0) {
    return [{ level: "bad", title: "The API is away.", text: `The page tries again by itself.${shown}` }];
  }
  const { diagnosis } = problem.body;
  const text = (diagnosis ? sentenceOf(diagnosis) : sentence(problem.message)) + shown;
  if (problem.status !== 503) return [{ level: "bad", title: "The API answers with an error.", text }];
  // Before the first snapshot, the page says so in place of the data.
  return version === null ? [] : [{ level: "bad", title: "There is no snapshot now.", text, docs: diagnosis?.docs }];
}

/**
 * Show notices. Notices that differ only in an age change in place, so that they are not read out again each time.
 * While the page is being read (`isRead`), notices that come or go move nothing in it: those that do not fit into their
 * container are shown over the end of the window, and a container that is too big keeps its size, until the reader
 * presses something.
 */
export function showNotices(notices, isRead) {
  const box = byId("notices");
  const shown = JSON.stringify(notices);
  if (box.dataset.shown === shown) return;
  box.dataset.shown = shown;
  const titles = notices.map(({ title, docs, action }) => [title, docs, action?.label].join(" ")).join("\n");
  if (box.dataset.titles !== titles) {
    box.dataset.titles = titles;
    box.replaceChildren(...notices.map(notice));
  }
  notices.forEach(({ level, text }, index) => {
    setAttribute(box.children[index], "data-level", level);
    setText(box.children[index].querySelector("span"), text);
  });
  if (!isRead) return makePlace();
  if (!notices.length) delete box.dataset.late;
  else if (box.offsetHeight > placeHeight + LINE) box.dataset.late = "";
}

let placeHeight = 0;

function makePlace() {
  const [box, place] = [byId("notices"), byId("notices-place")];
  delete box.dataset.late;
  place.style.minHeight = ""; // in the document flow, as wide as the page
  placeHeight = box.offsetHeight;
  place.style.minHeight = `${placeHeight}px`;
}

/** Fit the container to its notices whenever the reader presses something; call it once, when the page is made. */
export function placeNotices() {
  for (const event of ["click", "keydown", "resize"]) {
    addEventListener(event, () => byId("notices").offsetHeight === placeHeight || makePlace());
  }
}

function notice({ level, title, text, docs, action }) {
  const told = element("span", { "aria-live": "off" }, text);
  const box = element("p", { class: "notice", "data-level": level }, element("strong", {}, title), " ", told);
  if (docs) box.append(" ", docsLink(docs, "What to do"));
  if (action) {
    const button = element(
      "button",
      { class: "button quiet", type: "button", "aria-haspopup": "dialog" },
      action.label,
    );
    button.addEventListener("click", action.press);
    box.append(" ", button);
  }
  return box;
}

/** A text of the API as a sentence. */
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
