// A line above a table that is wider than its container: it counts the columns outside the view. Screen readers find
// all columns anyway.

import { element, setText } from "../lib/dom.js";

const NEAR = 4; // pixels of a column that may be hidden

/** Show above the scroller of a table which columns are beyond its edges, now and whenever that changes. */
export function addColumnCue(table) {
  const scroller = table.parentElement;
  const cue = element("p", { class: "cue faint", "aria-hidden": "true", hidden: true });
  const show = () => {
    const width = scroller.clientWidth;
    if (!width) return; // hidden
    cue.hidden = scroller.scrollWidth <= width + NEAR;
    if (cue.hidden) return;
    const [first, ...others] = table.tHead.rows[0].cells;
    // If the first column stays in place, the others are scrolled behind it.
    const covered = getComputedStyle(first).left === "0px" ? first.offsetWidth : 0;
    const left = scroller.scrollLeft;
    const after = others.filter((cell) => cell.offsetLeft + cell.offsetWidth > left + width + NEAR).length;
    const before = others.filter((cell) => cell.offsetLeft < left + covered - NEAR).length;
    const told = [before && `← ${columns(before)}`, after && `${columns(after)} →`].filter(Boolean);
    setText(cue, told.join(" · "));
  };
  scroller.before(cue);
  scroller.addEventListener("scroll", show, { passive: true });
  const observer = new ResizeObserver(show);
  observer.observe(scroller);
  observer.observe(table);
}

const columns = (number) => `${number} more column${number === 1 ? "" : "s"}`;
