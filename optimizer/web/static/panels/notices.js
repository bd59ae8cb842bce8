// Warnings about the numbers: that the API or Redis is away, that the data are stale, that
// the last run failed, that most bots have fields of other names.

import { byId, element, setText } from "../lib/dom.js";
import * as format from "../lib/format.js";
import { isAcceptable } from "./trigger.js";

const SAID = 600; // characters of what a guard said; all of it is under Last errors

/**
 * The notices of a state, the worst first, each {level, title, text}, and perhaps {action: {label, press}}. `accept`
 * opens the dialog that starts a run which accepts its input; null where no run can be started.
 */
export function whatToKnow({ problem, status, version, dataAt, ageS, lastRun, accept }) {
  const shown = dataAt ? ` What you see was read at ${format.time(dataAt.getTime())}.` : "";
  if (problem) return ofProblem(problem, version, shown);
  if (!status) return [];
  const notices = [];
  if (status.stale || ageS > 3 * status.interval_s) {
    // While Redis is away no run can be seen; the notice below says so.
    const isIdle = status.cache_up && !hasRunLately(status, ageS, lastRun);
    const question = isIdle ? " Are the worker and beat running?" : "";
    const text =
      `No run has made or confirmed them for ${format.duration(ageS)}; one is due every ` +
      `${format.duration(status.interval_s)}.${question}`;
    notices.push({ level: "bad", title: "The data are stale.", text });
  }
  if (status.bots_lack_fields) {
    const { bots } = status.rejected;
    const text =
      `${format.count(bots.without_fields)} of ${format.count(bots.seen)} bots have none. If theirs have other ` +
      "names, set ROLLING_BOT_FIELDS, which is suggested by: rolling-optimizer inspect";
    notices.push({ level: "warn", title: "Most bots have no value in any field that is read.", text });
  }
  if (lastRun?.status === "failed") {
    notices.push(ofFailure(lastRun, accept));
  }
  if (status.pinned) notices.push(ofPin(status));
  if (status.origin === "files" || !status.cache_up) {
    const from =
      status.origin === "files"
        ? "Read from the snapshot files, which are whole"
        : "The last snapshot that was read from it is shown";
    notices.push({ level: "warn", title: "Redis is away.", text: `${from}; live updates may wait until it is back.` });
  }
  return notices;
}

/** Whether the last run is younger than three intervals. Its time is compared with the confirmation's, not with
    this machine's clock. */
function hasRunLately(status, ageS, lastRun) {
  if (!lastRun) return false;
  const afterConfirmationS = (Date.parse(lastRun.timestamp) - Date.parse(status.last_success)) / 1000;
  return ageS - afterConfirmationS <= 3 * status.interval_s;
}

function ofFailure({ error, details, timestamp, updated }, accept) {
  const action = accept && !updated && isAcceptable(error) ? { label: "Accept this input…", press: accept } : null;
  const at = format.time(timestamp);
  if (error !== "GuardRefused" && !updated) {
    const text = `${error} at ${at}; what it said is under Last errors.`;
    return { level: "warn", title: "The last run failed.", text, action };
  }
  const said = details?.length > SAID ? `${details.slice(0, SAID)}…` : (details ?? "");
  // As it is: it begins with the input's path, whose case counts.
  const title = updated ? "An update was dropped." : "A guard refused the last run.";
  return { level: "warn", title, text: `At ${at}: ${said}.`, action };
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
  const text = sentence(problem.message) + shown;
  if (problem.status !== 503) return [{ level: "bad", title: "The API answers with an error.", text }];
  // Before the first snapshot the page says so in the place of the data.
  return version === null ? [] : [{ level: "bad", title: "There is no snapshot now.", text }];
}

/** Show notices. The same ones with another age change in place, so that they are not read out again each time. */
export function showNotices(notices) {
  const box = byId("notices");
  const titles = notices.map(({ title, action }) => title + (action?.label ?? "")).join(" ");
  if (box.dataset.titles !== titles) {
    box.dataset.titles = titles;
    box.replaceChildren(...notices.map(notice));
  }
  notices.forEach(({ text }, index) => setText(box.children[index].querySelector("span"), text));
}

function notice({ level, title, action }) {
  const text = element("span", { "aria-live": "off" });
  const box = element("p", { class: "notice", "data-level": level }, element("strong", {}, title), " ", text);
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
