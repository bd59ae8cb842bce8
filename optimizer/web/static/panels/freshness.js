// Two ages, ticking: how long ago a run last checked the input, and when the input itself was written. Green within an
// interval and a half since the check, amber up to three, red beyond that or if the input is too old. Ages come from
// the server and are advanced by this machine's monotonic clock, so that a wrong wall clock does no harm.

import { byId, setAttribute, setText } from "../lib/dom.js";
import { duration, fullTime, runTime, time } from "../lib/format.js";

const INTERVALS_FRESH = 1.5;
const INTERVALS_STALE = 3;

export class Freshness {
  #status = null;
  #at = 0;
  #level = "unknown";

  /** `onLevel` is called with `fresh`, `ageing`, `stale`, `silent` or `unknown` when that changes. */
  constructor(onLevel) {
    this.onLevel = onLevel;
    setInterval(() => this.#tick(), 1000);
  }

  /** Use the data of /status; null if nothing is known. */
  update(status) {
    this.#status = status;
    this.#at = performance.now();
    this.#tick();
  }

  /** Seconds since a run last made or confirmed the data. */
  get ageS() {
    return this.#status ? this.#status.age_s + this.#elapsedS : NaN;
  }

  get #elapsedS() {
    return (performance.now() - this.#at) / 1000;
  }

  #tick() {
    const meter = byId("freshness-meter");
    const age = this.ageS;
    const interval = this.#status?.interval_s ?? 30;
    const level = this.#levelAt(age, interval);
    const word = { stale: "Stale", silent: "Engine silent", unknown: "No data" }[level];
    const checked = `${duration(age)} ago`;
    setAttribute(byId("freshness"), "data-level", level);
    setText(byId("freshness-word"), word ?? "Checked");
    setText(byId("freshness-age"), level === "unknown" ? "" : word ? `checked ${checked}` : checked);
    setText(byId("freshness-interval"), level === "unknown" ? "" : `every ${duration(interval)}`);
    meter.style.setProperty("--share", level === "unknown" ? 0 : Math.min(1, age / (INTERVALS_STALE * interval)));
    setAttribute(meter, "aria-valuemax", INTERVALS_STALE * interval);
    setAttribute(
      meter,
      "aria-valuenow",
      level === "unknown" ? 0 : Math.min(INTERVALS_STALE * interval, Math.floor(age)),
    );
    setAttribute(
      meter,
      "aria-valuetext",
      level === "unknown" ? "no data" : `checked ${checked}${word ? `, ${word.toLowerCase()}` : ""}`,
    );
    setText(byId("freshness-input"), this.#inputText());
    setAttribute(byId("freshness-input"), "title", fullTime(this.#status?.input_at));
    if (level !== this.#level) {
      this.#level = level;
      this.onLevel(level);
    }
  }

  #levelAt(age, interval) {
    if (Number.isNaN(age)) return "unknown";
    if (this.#status.stale || age > INTERVALS_STALE * interval) return "stale";
    if (this.#status.input_stale) return "silent";
    return age > INTERVALS_FRESH * interval ? "ageing" : "fresh";
  }

  /** A text about the input; a space, which keeps the height, if nothing is known. */
  #inputText() {
    const { input_at: at, input_age_s: age, published_after_s: after } = this.#status ?? {};
    const texts = [];
    if (Number.isFinite(age)) texts.push(`Data from ${time(at)} (${duration(age + this.#elapsedS)} ago)`);
    if (Number.isFinite(after)) texts.push(`published ${runTime(after)} after landing`);
    return texts.join(", ") || "\u00a0";
  }
}
