// How old the data are, ticking: green within an interval and a half, amber up to three, red beyond; and below that the
// input. Ages come from the server and are counted on by this machine's steady clock, so that a wrong wall clock does no
// harm.

import { byId, setAttribute, setText } from "../lib/dom.js";
import { duration, runTime } from "../lib/format.js";

const INTERVALS_FRESH = 1.5;
const INTERVALS_STALE = 3;

export class Freshness {
  #status = null;
  #at = 0;
  #level = "unknown";

  /** `onLevel` is called with `fresh`, `ageing` or `stale` when that changes. */
  constructor(onLevel) {
    this.onLevel = onLevel;
    setInterval(() => this.#tick(), 1000);
  }

  /** Take over what /status says; null if nothing is known. */
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
    const level = Number.isNaN(age)
      ? "unknown"
      : this.#status.stale || age > INTERVALS_STALE * interval
        ? "stale"
        : age > INTERVALS_FRESH * interval
          ? "ageing"
          : "fresh";
    const word = { fresh: "Fresh", ageing: "Ageing", stale: "Stale", unknown: "No data" }[level];
    setAttribute(byId("freshness"), "data-level", level);
    setText(byId("freshness-word"), word);
    setText(byId("freshness-age"), level === "unknown" ? "" : `${duration(age)} old`);
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
      level === "unknown" ? "no data" : `${duration(age)} old, ${word.toLowerCase()}`,
    );
    setText(byId("freshness-input"), this.#inputText());
    if (level !== this.#level) {
      this.#level = level;
      this.onLevel(level);
    }
  }

  /** What is known of the input; a space that keeps the place if that is nothing. */
  #inputText() {
    const { input_age_s: age, published_after_s: after } = this.#status ?? {};
    const texts = [];
    if (Number.isFinite(age)) texts.push(`written ${duration(age + this.#elapsedS)} ago`);
    if (Number.isFinite(after)) texts.push(`published ${runTime(after)} after it landed`);
    return texts.length ? `Input ${texts.join(", ")}` : "\u00a0";
  }
}
