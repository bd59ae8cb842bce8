// The changes of predictions in each version: symbols that entered or left, moved, or changed their confidence most.
// The newest step is shown until the reader goes to another, which then stays, whatever versions come.

import { changesText } from "../components/counts.js";
import { get, Problem } from "../lib/api.js";
import { byId, element, setAttribute, setText } from "../lib/dom.js";
import * as format from "../lib/format.js";
import { newest } from "../lib/newest.js";
import { symbolAddress } from "../lib/route.js";

const LAST = 50;
const LISTED = 20; // the longest list of a step

const LISTS = [
  {
    key: "entered",
    title: "Entered",
    total: ({ counts }) => counts.predictions.added,
    texts: (one) => [`at ${format.count(one.rank)}`, format.percent(one.confidence)],
  },
  {
    key: "left",
    title: "Left",
    total: ({ counts }) => counts.predictions.removed,
    texts: (one) => [`was at ${format.count(one.rank)}`, format.percent(one.confidence)],
  },
  {
    key: "moved",
    title: "Moved",
    texts: ({ from, to }) => [`${format.count(from)} → ${format.count(to)}`, places(from - to)],
    sign: ({ from, to }) => from - to,
  },
  {
    key: "confidence",
    title: "Confidence",
    texts: ({ from, to }) => [
      `${format.percent(from)} → ${format.percent(to)}`,
      `${format.gain(100 * (to - from))} points`,
    ],
    sign: ({ from, to }) => to - from,
  },
];

export class Changes {
  #steps = [];
  // The step that the reader went to; null follows the newest.
  #chosen = null;
  #wanted = null;
  #since = null;
  #answered = null;
  #asking = false;
  #shown = null;

  constructor() {
    this.panel = byId("changes");
    this.lists = LISTS.map((list) => ({ ...list, ...this.#box(list) }));
    byId("changes-lists").append(...this.lists.map(({ box }) => box));
    byId("changes-older").addEventListener("click", () => this.#go(1));
    byId("changes-newer").addEventListener("click", () => this.#go(-1));
    byId("changes-newest").addEventListener("click", () => this.#goTo(0));
    this.panel.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Update to the content that the page shows, or null, and request the steps if they are of another version. */
  async notice(content) {
    if (content === null) return;
    this.#wanted = content.version;
    this.#since = content.timestamp;
    if (this.#asking) return;
    this.#asking = true;
    try {
      for (let asked = null; asked !== this.#wanted && this.#answered !== this.#wanted;) {
        asked = this.#wanted;
        await this.#ask();
      }
    } finally {
      this.#asking = false;
    }
  }

  async #ask() {
    try {
      let answered = null;
      const steps = await newest(this.#steps, LAST, async (limit) => {
        const answer = await get(`history?limit=${limit}`);
        answered = answer.version;
        return answer.steps;
      });
      this.#answered = answered;
      this.#steps = steps;
      // The chosen step may have been dropped by the API: it stays as it was.
      if (this.#chosen) this.#chosen = steps[this.#position()] ?? this.#chosen;
      this.#show();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      // The shown steps stay; the next update requests them again.
      if (this.#answered !== null) return;
      setAttribute(this.panel, "aria-busy", "false");
      setText(byId("changes-empty"), `The changes cannot be read: ${problem.message}`);
    }
  }

  /** The position of the shown step, 0 for the newest; -1 if it is no longer among the steps. */
  #position() {
    return this.#chosen ? this.#steps.findIndex(({ version }) => version === this.#chosen.version) : 0;
  }

  #go(by) {
    const position = this.#position();
    const next = position < 0 ? (by < 0 ? this.#steps.length - 1 : -1) : position + by;
    if (next >= 0 && next < this.#steps.length) this.#goTo(next);
  }

  #goTo(position) {
    if (!this.#steps.length) return;
    this.#chosen = position === 0 ? null : this.#steps[position];
    this.#show();
    setText(byId("changes-said"), `${byId("changes-position").textContent}, ${byId("changes-when").textContent}`);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const by = { ArrowLeft: 1, ArrowRight: -1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    this.#go(by);
  }

  #show() {
    const step = this.#chosen ?? this.#steps[0];
    const position = this.#position();
    setAttribute(this.panel, "aria-busy", "false");
    byId("changes-empty").hidden = step !== undefined;
    byId("changes-lists").hidden = byId("changes-steps").hidden = step === undefined;
    if (step === undefined) {
      setText(byId("changes-empty"), `Nothing has changed since the version of ${format.time(this.#since)}.`);
      setText(byId("changes-when"), "");
      setText(byId("changes-counts"), "");
      return;
    }
    const oldest = position < 0 || position === this.#steps.length - 1;
    // Not disabled, since a disabled button loses the focus.
    setAttribute(byId("changes-older"), "aria-disabled", oldest);
    setAttribute(byId("changes-newer"), "aria-disabled", position === 0);
    setAttribute(byId("changes-newest"), "aria-pressed", this.#chosen === null);
    const all = format.count(this.#steps.length);
    setText(byId("changes-position"), position < 0 ? `older than the last ${all}` : `${position + 1} of ${all}`);
    setText(byId("changes-when"), `Version of ${format.time(step.timestamp)}`);
    setAttribute(byId("changes-when"), "title", `${format.fullTime(step.timestamp)}, version ${step.version}`);
    if (this.#shown === step.version) return; // the links keep the focus
    this.#shown = step.version;
    setText(byId("changes-counts"), changesText(step.counts));
    for (const { key, total, texts, sign, count, items } of this.lists) {
      const ones = step[key];
      setText(count, countOf(ones.length, total?.(step)));
      items.replaceChildren(
        ...(ones.length
          ? ones.map((one) => item(one.symbol, texts(one), sign?.(one)))
          : [element("li", { class: "quiet-line" }, "None")]),
      );
    }
    for (const { scroller } of this.lists) scroller.scrollTop = 0; // together, since each forces a layout
  }

  #box({ key, title }) {
    const count = element("span", { class: "faint" });
    const items = element("ol", { class: "steps-list" });
    const head = element("h3", { id: `changes-${key}` }, `${title} `, count);
    const scroller = element(
      "div",
      { class: "steps-scroller", role: "group", "aria-labelledby": head.id, tabindex: 0 },
      items,
    );
    return { box: element("div", { class: "steps-box" }, head, scroller), count, items, scroller };
  }
}

function item(symbol, [text, more], sign = 0) {
  return element(
    "li",
    {},
    element("a", { href: symbolAddress(symbol), class: "name", title: symbol }, element("bdi", {}, symbol)),
    element("span", { class: "faint" }, text),
    element("span", { class: "number", "data-sign": sign > 0 ? "up" : sign < 0 ? "down" : "flat" }, more),
  );
}

/** The length of a list, and the number of all changes of its kind, if that is known. */
function countOf(listed, total) {
  if (total > listed) return `${format.count(listed)} of ${format.count(total)}`;
  return total === undefined && listed === LISTED ? `the ${LISTED} biggest` : format.count(listed);
}

/** Places won or lost, with a sign. */
const places = (number) => `${number > 0 ? "▲" : "▼"} ${format.count(Math.abs(number))}`;
