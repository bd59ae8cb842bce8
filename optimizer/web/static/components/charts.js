// Small charts in SVG of values over runs, the oldest left. Their numbers are in the table of runs too.

import { setText, svg } from "../lib/dom.js";
import * as format from "../lib/format.js";
import { BOTTOM, HEIGHT, Plot, RIGHT, tick, timeAxis, TOP } from "./plot.js";

const LEFT = 44;

/** One chart: a heading with the newest value, a plot of `series`, each {name, kind, value(report), show(value)}. */
export class Chart {
  #reports = [];
  #plot;

  constructor(box, { title, series }) {
    this.title = title;
    this.series = series;
    this.#plot = new Plot(box, title, {
      draw: (drawing, width) => this.#draw(drawing, width),
      find: (x) => this.#find(x),
    });
  }

  /** Show these reports, the oldest first; all have stats. */
  update(reports) {
    this.#reports = reports;
    this.#plot.redraw();
  }

  #draw(drawing, width) {
    this.width = width;
    // Each series has a scale of its own, and so a plot of its own, one above the other.
    const gap = 18;
    const each = (HEIGHT - TOP - BOTTOM - gap * (this.series.length - 1)) / this.series.length;
    this.series.forEach((one, index) => this.#drawSeries(drawing, one, TOP + index * (each + gap), each));
    const last = this.#reports.at(-1);
    if (last) {
      const first = this.#reports.length > 1 ? format.time(this.#reports[0].timestamp) : null;
      timeAxis(drawing, { left: LEFT, right: width - RIGHT, first, last: format.time(last.timestamp) });
    }
    const newest = (one, index) => one.show(one.value(last)) + (index ? ` ${one.name}` : "");
    setText(this.#plot.note, last ? this.series.map(newest).join(" · ") : format.MISSING);
    return `${this.title}: ${last ? this.series.map((one) => this.#summary(one)).join("; ") : "no run yet"}`;
  }

  #summary(one) {
    const values = this.#reports.map(one.value);
    return (
      `${one.name} latest ${one.show(values.at(-1))}, lowest ${one.show(Math.min(...values))}, ` +
      `highest ${one.show(Math.max(...values))}, over ${values.length} runs`
    );
  }

  #drawSeries(drawing, one, top, height) {
    const values = this.#reports.map(one.value);
    const ceiling = niceCeiling(Math.max(0, ...values));
    const y = (value) => top + height * (1 - value / ceiling);
    for (const value of height > 70 ? [0, ceiling / 2, ceiling] : [0, ceiling]) {
      tick(drawing, { left: LEFT, right: this.width - RIGHT, y: y(value), text: format.measured(value) });
    }
    if (!values.length) return;
    const marks = svg("g", { class: `series ${one.kind}`, "data-series": one.name });
    if (one.kind === "bars") {
      const thick = Math.max(1, Math.min(10, this.#step() * 0.7));
      values.forEach((value, index) =>
        marks.append(
          svg("rect", {
            x: this.#x(index) - thick / 2,
            y: y(value),
            width: thick,
            height: top + height - y(value),
            rx: 1,
          }),
        ),
      );
    } else {
      const path = values
        .map((value, index) => `${index ? "L" : "M"}${this.#x(index).toFixed(1)} ${y(value).toFixed(1)}`)
        .join("");
      const end = this.#x(values.length - 1);
      marks.append(
        svg("path", { class: "area", d: `${path}L${end} ${top + height}L${this.#x(0)} ${top + height}Z` }),
        svg("path", { class: "stroke", d: path }),
        svg("circle", { cx: end, cy: y(values.at(-1)), r: 3 }),
      );
    }
    drawing.append(marks);
  }

  #step() {
    return (this.width - LEFT - RIGHT - 8) / Math.max(1, this.#reports.length - 1);
  }

  #x(index) {
    return this.#reports.length === 1 ? this.width - RIGHT - 8 : LEFT + 4 + index * this.#step();
  }

  #find(x) {
    if (!this.#reports.length) return null;
    const index = Math.max(0, Math.min(this.#reports.length - 1, Math.round((x - LEFT - 4) / this.#step())));
    const report = this.#reports[index];
    const values = this.series.map(
      (one) => `${this.series.length > 1 ? `${one.name} ` : ""}${one.show(one.value(report))}`,
    );
    return { x: this.#x(index), text: `${values.join(", ")} at ${format.time(report.timestamp)}` };
  }
}

// The worse an outcome, the taller its block, so that colour is not all that tells them apart.
const BLOCKS_AT_LEAST = 60;
const BLOCK_HEIGHTS = { unchanged: 9, skipped: 13, success: 17, failed: 24 };

/** The outcomes of runs as a strip of blocks, the oldest left. */
export function drawStrip(box, reports, summary) {
  // A few runs stand at the right end, where the newest is, and are not drawn wide.
  const slots = Math.max(BLOCKS_AT_LEAST, reports.length);
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${10 * slots} 24`, preserveAspectRatio: "none", role: "img" },
    svg("title", {}, summary),
  );
  reports.forEach((report, index) => {
    const height = BLOCK_HEIGHTS[report.status];
    drawing.append(
      svg(
        "rect",
        {
          class: "block",
          "data-kind": report.status,
          x: 10 * (slots - reports.length + index) + 1,
          y: 24 - height,
          width: 8,
          height,
        },
        svg(
          "title",
          {},
          `${format.time(report.timestamp)}: ${report.status}${report.error ? `, ${report.error}` : ""}`,
        ),
      ),
    );
  });
  box.replaceChildren(drawing);
}

/** A round number that is not below a value, for the top of a scale; 1 for nothing. */
function niceCeiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10]
    .map((factor) => factor * power)
    .find((ceiling) => ceiling >= value * (1 - 1e-9));
}
