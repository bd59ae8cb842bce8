// The frame of a chart: a heading, a drawing as wide as its container, a line and a text at the pointer. The chart
// draws its content; its numbers are also in the title of the drawing, and in a table beside it.

import { element, setText, svg } from "../lib/dom.js";

export const HEIGHT = 132;
export const RIGHT = 8;
export const TOP = 8;
export const BOTTOM = 20;

const NARROWEST = 72;

export class Plot {
  #width = 0;

  /**
   * `draw(drawing, width)` fills an empty drawing and returns its title. `find(x)` returns the point at a position,
   * {x, text}, or null.
   */
  constructor(box, title, { draw, find }) {
    this.draw = draw;
    this.find = find;
    this.note = element("strong");
    this.place = element("div", { class: "plot" });
    this.tip = element("p", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.place.addEventListener("pointermove", (event) => this.#point(event));
    this.place.addEventListener("pointerleave", () => this.#leave());
    const caption = element("figcaption", {}, element("span", {}, title), this.note);
    box.append(element("figure", { class: "chart" }, caption, this.place));
    // Measured by an observer: reading the width when drawing would make the browser lay out the page once per chart.
    new ResizeObserver(([{ contentRect }]) => {
      this.#width = Math.floor(contentRect.width);
      this.redraw();
    }).observe(this.place);
  }

  /** Draw again, at the present width. */
  redraw() {
    const width = this.#width;
    if (width < NARROWEST) return;
    const drawing = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
    const title = svg("title");
    drawing.append(title);
    setText(title, this.draw(drawing, width));
    this.line = svg("line", { class: "pointer", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    drawing.append(this.line);
    this.place.replaceChildren(drawing, this.tip);
  }

  #point(event) {
    const found = this.find(event.clientX - this.place.getBoundingClientRect().left);
    if (!found || !this.line) return;
    this.line.setAttribute("x1", found.x);
    this.line.setAttribute("x2", found.x);
    this.line.setAttribute("visibility", "visible");
    setText(this.tip, found.text);
    this.tip.hidden = false;
    const maxLeft = this.place.clientWidth - this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(maxLeft, found.x - this.tip.offsetWidth / 2))}px`;
  }

  #leave() {
    this.tip.hidden = true;
    this.line?.setAttribute("visibility", "hidden");
  }
}

/** A grid line at the height of a tick, and its text. */
export function tick(drawing, { left, right, y, text }) {
  drawing.append(
    svg("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }),
    svg("text", { class: "tick", x: left - 6, y: y + 4, "text-anchor": "end" }, text),
  );
}

/** The texts at both ends of the axis of time; `first` may be null. */
export function timeAxis(drawing, { left, right, first, last }) {
  const y = HEIGHT - 4;
  drawing.append(svg("text", { class: "tick", x: right, y, "text-anchor": "end" }, last));
  if (first !== null) drawing.append(svg("text", { class: "tick", x: left, y }, first));
}
