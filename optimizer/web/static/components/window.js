// Which rows of a long table are in the document: those in view, and as many again before and after, so that a key or
// a wheel shows no gap. All rows are of one height; space above and below stands for those that are left out. On paper
// all rows are there.

const ROW_HEIGHT = 37; // until one has been measured
const FEWEST = 20; // rows before and after those in view

/** Follows how far a scroller is scrolled, and says which rows of its table are to be there. */
export class RowWindow {
  #top = 0;
  #height = 0;
  #headHeight = 0;
  #rowHeight = ROW_HEIGHT;
  #count = 0;
  #start = 0;
  #end = 0;
  #isPrinted = false;

  /** `onMove` is called when rows have come near the edge of what is there. */
  constructor(scroller, table, onMove) {
    this.scroller = scroller;
    this.head = table.tHead;
    this.body = table.tBodies[0];
    this.onMove = onMove;
    scroller.addEventListener("scroll", () => this.#measure(), { passive: true });
    new ResizeObserver(() => this.#measure()).observe(scroller);
    addEventListener("beforeprint", () => this.#print(true));
    addEventListener("afterprint", () => this.#print(false));
  }

  /** The first row that is to be there, and the one after the last, of so many rows. */
  range(count) {
    this.#count = count;
    if (this.#isPrinted) return [0, count];
    const [first, last] = this.#inView();
    const around = Math.max(FEWEST, last - first);
    this.#start = Math.max(0, first - around);
    this.#end = Math.min(count, last + around);
    return [this.#start, this.#end];
  }

  /** Leave space for so many rows above and below those that are there. */
  leaveSpace(above, below) {
    this.body.style.setProperty("--above", `${above * this.#rowHeight}px`);
    this.body.style.setProperty("--below", `${below * this.#rowHeight}px`);
  }

  /** Scroll so far that a row is in view. */
  reveal(index) {
    const top = index * this.#rowHeight;
    const lowest = top + this.#rowHeight + this.#headHeight - this.#height;
    this.scrollTo(Math.min(top, Math.max(lowest, this.#top)));
  }

  /** Scroll to a place, in pixels from the first row. */
  scrollTo(top) {
    this.#top = this.scroller.scrollTop = top;
  }

  /** As many rows as are in view at once. */
  get page() {
    const [first, last] = this.#inView();
    return Math.max(1, last - first - 2);
  }

  #inView() {
    const rows = Math.ceil((this.#height - this.#headHeight) / this.#rowHeight) + 1;
    const first = Math.min(Math.floor(this.#top / this.#rowHeight), this.#count - rows + 1);
    return [Math.max(0, first), Math.max(0, first) + rows];
  }

  #print(isPrinted) {
    this.#isPrinted = isPrinted;
    this.onMove();
  }

  // What is read here is laid out already: at an update it would have to be laid out for that.
  #measure() {
    const { scroller, body } = this;
    if (!scroller.clientHeight) return; // hidden: it will be shown as it was
    this.#top = scroller.scrollTop;
    this.#height = scroller.clientHeight;
    this.#headHeight = this.head.offsetHeight;
    const rowHeight = body.rows[0]?.getBoundingClientRect().height || this.#rowHeight;
    const [first, last] = this.#inView();
    const isNear = first < this.#start + FEWEST / 2 && this.#start > 0;
    const isNearEnd = last > this.#end - FEWEST / 2 && this.#end < this.#count;
    const isResized = Math.abs(rowHeight - this.#rowHeight) > 0.1;
    this.#rowHeight = rowHeight;
    if (isNear || isNearEnd || isResized) this.onMove();
  }
}
