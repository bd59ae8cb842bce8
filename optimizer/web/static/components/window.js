// Decides which rows of a long table are in the document: those in view, and as many before and after, so that
// scrolling shows no gap. All rows have the same height; space above and below replaces the other rows. In print, all
// rows are included.

const ROW_HEIGHT = 37; // until one has been measured
const FEWEST = 20; // rows before and after those in view

/** Follows the position of a scroller, and says which rows of its table have to be in the document. */
export class RowWindow {
  #top = 0;
  #height = 0;
  #headHeight = 0;
  #rowHeight = ROW_HEIGHT;
  #count = 0;
  #start = 0;
  #end = 0;
  #isPrinted = false;

  /** `onMove` is called when the view comes near the edge of the present rows. */
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

  /** The first row that has to be present, and the one after the last, given the number of rows. */
  range(count) {
    this.#count = count;
    if (this.#isPrinted) return [0, count];
    const [first, last] = this.#inView();
    const around = Math.max(FEWEST, last - first);
    this.#start = Math.max(0, first - around);
    this.#end = Math.min(count, last + around);
    return [this.#start, this.#end];
  }

  /** Leave space for the missing rows above and below the present ones. */
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

  // Reading these sizes is free here, since the layout is done; during an update it would force a layout.
  #measure() {
    const { scroller, body } = this;
    if (!scroller.clientHeight) return; // hidden: it will be shown at the same position
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
