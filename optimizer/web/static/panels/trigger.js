// "Run now": asks for the token, starts a run, follows it to its end. The token is kept in this tab's session storage
// and only sent in the Authorization header of these two requests. If a run was refused because of its input, it offers
// another run that accepts it.

import { changesText } from "../components/counts.js";
import { get, post, Problem } from "../lib/api.js";
import { byId, setAttribute, setText } from "../lib/dom.js";
import * as format from "../lib/format.js";

const TOKEN = "rolling-optimizer-trigger-token";
const POLL_MS = 700;
const WAITS_LONG_MS = 15_000;
// The server keeps results for this long. A run that has not begun by then is lost, or unknown.
const GIVES_UP_MS = 15 * 60_000;

// Errors of an input that can be accepted anyway.
const ACCEPTABLE = ["TooManyRejected", "NoBots", "GuardRefused"];

/** Whether a failed run's input can be accepted. */
export const isAcceptable = (error) => ACCEPTABLE.includes(error);

export class Trigger {
  allowed = false;
  // The id of the run that is followed; null for none.
  #followed = null;

  /** `onEnd` is called when a run that was started here has ended. `cause` is the diagnosis of the source, or null. */
  constructor(onEnd, cause) {
    this.onEnd = onEnd;
    this.cause = cause;
    this.dialog = byId("run-dialog");
    byId("run-open").addEventListener("click", () => this.ask());
    byId("run-accept-open").addEventListener("click", () => this.ask({ accept: true }));
    byId("run-cancel").addEventListener("click", () => this.dialog.close());
    byId("run-dismiss").addEventListener("click", () => {
      this.#followed = null;
      byId("run-progress").hidden = true;
      byId("run-open").disabled = false;
      byId("run-open").focus();
    });
    byId("run-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
  }

  /** Show the button only if the server accepts triggers. */
  allow(allowed) {
    this.allowed = allowed;
    byId("run-open").hidden = !allowed;
  }

  /** Open the dialog, with `accept` chosen or not. */
  ask({ accept = false } = {}) {
    byId("run-accept").checked = accept;
    byId("run-token").value = sessionStorage.getItem(TOKEN) ?? "";
    setText(byId("run-error"), "");
    this.dialog.showModal();
    byId(byId("run-token").value ? "run-send" : "run-token").focus();
  }

  async #send() {
    const token = byId("run-token").value.trim();
    // The browser refuses to send an invalid header, with an error message that does not help.
    if (!/^[\x21-\x7e]+$/.test(token))
      return setText(byId("run-error"), "A token has no spaces and only ASCII characters.");
    byId("run-send").disabled = true;
    setText(byId("run-error"), "");
    try {
      const { id } = await post(
        "runs",
        { force: byId("run-force").checked, accept: byId("run-accept").checked },
        token,
      );
      sessionStorage.setItem(TOKEN, token);
      this.dialog.close();
      this.#follow(id, token);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (problem.status === 401) sessionStorage.removeItem(TOKEN);
      setText(byId("run-error"), problem.status === 401 ? "This token is not the right one." : problem.message);
      byId("run-token").select();
    } finally {
      byId("run-send").disabled = false;
    }
  }

  async #follow(id, token) {
    this.#followed = id;
    byId("run-open").disabled = true;
    byId("run-progress").hidden = false;
    byId("run-accept-open").hidden = true;
    this.#show("pending", "Sent; waiting for a worker", "", null);
    // The button that had the focus is disabled now.
    byId("run-progress").focus();
    const started = performance.now();
    while (this.#followed === id) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      try {
        const run = await get(`runs/${encodeURIComponent(id)}`, token);
        if (this.#followed === id) this.#step(run, performance.now() - started);
      } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
        if (this.#followed !== id) return;
        if (problem.status === 401 || problem.status === 404)
          this.#end("failed", "The run can no longer be followed", problem.message);
        else setText(byId("run-hint"), `${problem.message}; trying again`);
      }
    }
  }

  #step(run, waitedMs) {
    if (run.state === "done") {
      this.#end(run.report?.status ?? "success", outcome(run.report), run.report?.details ?? run.report?.reason ?? "");
    } else if (run.state === "failed") {
      this.#end("failed", `Failed: ${run.error?.error ?? "unknown"}`, run.error?.details ?? "");
      byId("run-accept-open").hidden = !isAcceptable(run.error?.error);
    } else if (run.state === "running") {
      const percent = run.percent ?? null;
      this.#show(
        "running",
        percent === null ? "Running" : `Running: ${Math.floor(percent)} % of the file`,
        "",
        percent,
      );
    } else if (waitedMs > GIVES_UP_MS) {
      this.#end("failed", "No longer waiting", this.cause() ?? "No worker has taken it in a quarter of an hour: is one running?");
    } else {
      this.#show(
        "pending",
        "Sent; waiting for a worker",
        waitedMs > WAITS_LONG_MS ? (this.cause() ?? "No worker has taken it yet: all of its slots may be busy.") : "",
        null,
      );
    }
  }

  #show(state, text, hint, percent) {
    setAttribute(byId("run-progress"), "data-state", state);
    setText(byId("run-text"), text);
    setText(byId("run-hint"), hint);
    byId("run-bar").hidden = false;
    if (percent === null) byId("run-bar").removeAttribute("value");
    else byId("run-bar").value = percent;
  }

  #end(state, text, hint) {
    this.#followed = null;
    this.#show(state, text, hint, 100);
    byId("run-bar").hidden = true;
    byId("run-open").disabled = false;
    this.onEnd();
  }
}

function outcome(report) {
  if (!report) return "Done";
  if (report.status === "unchanged") return "Done: the file has not changed";
  if (report.status === "skipped") return report.reason === "pinned" ? "Skipped: the version is pinned" : "Skipped";
  if (report.status === "failed") return `Failed: ${report.error}`;
  if (!report.stats) return "Done";
  const { seconds, predictions_extracted: kept, records_seen: seen } = report.stats;
  const content = report.changes && !changesText(report.changes) ? ", content as before" : "";
  return (
    `Done in ${format.runTime(seconds)}: ${format.count(kept)} predictions of ${format.count(seen)} records` + content
  );
}
