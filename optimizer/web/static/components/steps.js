// A chart of values over time, each valid until the next one, as step lines; a gap shows that there was no value. The
// lines of a chart share its scale, which spans their values and need not begin at 0.

import { element, svg } from "../lib/dom.js";
import * as format from "../lib/format.js";
import { BOTTOM, HEIGHT, Plot, RIGHT, tick, timeAxis, TOP } from "./plot.js";

const CHARACTER = 6.4; // of a tick, in pixels
const TICKS = 3;

export class StepChart {
  #points = [];
  #end = 0;
  #plot;

  /**
   * `series` are {name, value(point)}, of which the first is drawn most heavily; `show(value)` is the text of a value,
   * `showTick(value, step)` the text of a tick on a scale with this step.
   */
  constructor(box, { title, series, show, showTick }) {
    this.title = title;
    this.series = series;
    this.show = show;
    this.showTick = showTick;
    this.#plot = new Plot(box, title, {
      draw: (drawing, width) => this.#draw(drawing, width),
      find: (x) => this.#find(x),
    });
  }

  /** Show points {timestamp, ...}, oldest first; the last one is valid until `end`, in ms since the epoch. */
  update(points, end) {
    this.#points = points.map((point) => ({ ...point, at: Date.parse(point.timestamp) }));
    this.#end = Math.max(end, ...this.#points.map(({ at }) => at));
    this.#plot.redraw();
  }

  #draw(drawing, width) {
    const all = this.series.flatMap((one) => this.#points.map(one.value)).filter(Number.isFinite);
    this.#plot.note.replaceChildren(...this.series.flatMap((one, nth) => this.#legend(one, nth)));
    if (!all.length) return `${this.title}: no values`;
    const { ticks, step } = scale(Math.min(...all), Math.max(...all));
    const [low, high] = [ticks[0], ticks.at(-1)];
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low));
    const texts = ticks.map((value) => this.showTick(value, step));
    const left = 12 + CHARACTER * Math.max(...texts.map((text) => text.length));
    const right = width - RIGHT;
    ticks.forEach((value, index) => tick(drawing, { left, right, y: y(value), text: texts[index] }));
    const first = this.#points[0].at;
    this.x = (at) => (this.#end === first ? left : left + ((right - left) * (at - first)) / (this.#end - first));
    this.right = right;
    timeAxis(drawing, { left, right, first: format.time(first), last: format.time(this.#end) });
    this.series
      .map((one, nth) => this.#line(one, nth, y))
      .toReversed() // the first lies above the others
      .forEach((line) => drawing.append(line));
    return `${this.title} from ${format.time(first)} to ${format.time(this.#end)}: ${this.#summary()}`;
  }

  #line(one, nth, y) {
    let path = "";
    let drawn = false;
    this.#points.forEach((point, index) => {
      const value = one.value(point);
      const until = this.#points[index + 1]?.at;
      if (Number.isFinite(value)) {
        path += drawn ? `V${y(value).toFixed(1)}` : `M${this.x(point.at).toFixed(1)} ${y(value).toFixed(1)}`;
        path += `H${(until === undefined ? this.right : this.x(until)).toFixed(1)}`;
      }
      drawn = Number.isFinite(value);
    });
    const marks = svg("g", { class: "series", "data-series": one.name, "data-nth": nth });
    marks.append(svg("path", { class: "stroke", d: path }));
    const last = one.value(this.#points.at(-1));
    if (Number.isFinite(last)) marks.append(svg("circle", { cx: this.right, cy: y(last), r: 3 }));
    return marks;
  }

  #legend(one, nth) {
    const last = this.#points.length ? this.show(one.value(this.#points.at(-1))) : format.MISSING;
    if (this.series.length === 1) return [last];
    const key = element("span", { class: "key", "data-nth": nth, "aria-hidden": "true" });
    return [element("span", { class: "keyed" }, key, element("span", { class: "faint" }, one.name), ` ${last}`)];
  }

  #summary() {
    return this.series
      .map((one) => {
        const values = this.#points.map(one.value).filter(Number.isFinite);
        const [now, low, high] = [one.value(this.#points.at(-1)), Math.min(...values), Math.max(...values)];
        return `${one.name} now ${this.show(now)}, lowest ${this.show(low)}, highest ${this.show(high)}`;
      })
      .join("; ");
  }

  #find(x) {
    if (!this.x) return null;
    const point = this.#points.findLast(({ at }) => this.x(at) <= x) ?? this.#points[0];
    if (!point) return null;
    const values = this.series.map((one) => `${one.name} ${this.show(one.value(point))}`);
    return { x: this.x(point.at), text: `${values.join(", ")} from ${format.time(point.timestamp)}` };
  }
}

/** A scale that spans two values, with about three steps of a round number each. */
export function scale(low, high) {
  const span = high - low || Math.abs(high) / 50 || 1;
  const power = 10 ** Math.floor(Math.log10(span / TICKS));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size * TICKS >= span * (1 - 1e-9));
  const from = Math.floor(low / step + 1e-9);
  const to = Math.max(from + 1, Math.ceil(high / step - 1e-9));
  return { ticks: Array.from({ length: to - from + 1 }, (_, index) => (from + index) * step), step };
}
