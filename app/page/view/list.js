// A list that has elements only for the rows in sight. It is our own because the page has no build step, and its policy
// allows no inline styles in markup: the libraries that do this are built for a bundler. A hundred thousand rows cost
// as much as thirty.

const SPARE = 6; // rows above and below what is in sight
const TALLEST = 8_000_000; // px. Firefox cannot lay out more than 17,895,697 px; above this, scrolling covers more rows

export class List {
  count = 0;
  active = -1; // the row with the keyboard's cursor
  #pool = []; // rows: {element, index}
  #frame = 0;

  /** `make()` returns a row's element, `fill(element, index)` shows a row in it, `onactive(index)` follows the cursor. */
  constructor(viewport, { make, fill, onactive = () => {}, onenter = () => {}, head = null }) {
    Object.assign(this, { viewport, make, fill, onactive, onenter });
    this.space = document.createElement('div');
    this.space.className = 'space';
    this.space.setAttribute('role', 'presentation');
    viewport.append(...(head ? [head] : []), this.space);
    this.head = head;
    viewport.addEventListener('scroll', () => this.later(), { passive: true });
    viewport.addEventListener('keydown', (event) => this.#key(event));
    new ResizeObserver(() => this.later()).observe(viewport);
  }

  get #rowHeight() { return parseFloat(getComputedStyle(this.viewport).getPropertyValue('--row')) || 28; }
  get #view() { return Math.max(0, this.viewport.clientHeight - (this.head?.offsetHeight ?? 0)); }

  later() { this.#frame ||= requestAnimationFrame(() => this.draw()); }

  #sizes() {
    const row = this.#rowHeight, view = this.#view, full = this.count * row, height = Math.min(full, TALLEST);
    // How far a pixel of scrolling moves; 1 unless the list is taller than a browser can lay out.
    const ratio = height > view ? (full - view) / (height - view) : 1;
    return { row, view, height, ratio };
  }

  draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const { row, view, height, ratio } = this.#sizes();
    this.space.style.height = `${height}px`;
    const scrolled = Math.min(this.viewport.scrollTop, Math.max(0, height - view)), top = scrolled * ratio;
    const first = Math.max(0, Math.floor(top / row) - SPARE);
    const last = Math.min(this.count, Math.ceil((top + view) / row) + SPARE);
    for (const one of this.#pool) if (one.index < first || one.index >= last) one.index = -1;
    const by = new Map(this.#pool.filter(({ index }) => index >= 0).map((one) => [one.index, one]));
    const free = this.#pool.filter(({ index }) => index < 0);
    for (let index = first; index < last; index++) {
      const one = by.get(index) ?? free.pop() ?? this.#add();
      one.index = index;
      one.element.style.transform = `translateY(${scrolled + index * row - top}px)`;
      one.element.id = `${this.viewport.id}-${index}`;
      one.element.classList.toggle('active', index === this.active);
      this.fill(one.element, index);
    }
    // What is not needed goes: a row out of sight must not keep what may no longer be shown.
    for (const { element } of free) element.remove();
    this.#pool = this.#pool.filter(({ index }) => index >= 0);
    const seen = this.active >= first && this.active < last;
    if (seen) this.viewport.setAttribute('aria-activedescendant', `${this.viewport.id}-${this.active}`);
    else this.viewport.removeAttribute('aria-activedescendant');
  }

  #add() {
    const element = this.make(), one = { element, index: -1 };
    element.addEventListener('click', () => this.activate(one.index));
    this.space.append(element);
    this.#pool.push(one);
    return one;
  }

  /** The elements of the rows in sight, with their indexes. */
  *seen() {
    for (const { element, index } of this.#pool) if (index >= 0) yield [element, index];
  }

  /** Move the keyboard's cursor to a row, and the row into sight. */
  activate(index) {
    this.active = index;
    if (index >= 0) this.reveal(index);
    if (index >= 0) this.onactive(index);
    this.draw();
  }

  reveal(index) {
    const { row, view, ratio } = this.#sizes(), top = this.viewport.scrollTop * ratio;
    this.space.style.height = `${this.#sizes().height}px`;
    if (index * row < top) this.viewport.scrollTop = (index * row) / ratio;
    else if ((index + 1) * row > top + view) this.viewport.scrollTop = ((index + 1) * row - view) / ratio;
  }

  /** Rows were put in at the top: show the same rows as before. */
  shift(rows) {
    const { row, height, ratio } = this.#sizes();
    this.space.style.height = `${height}px`;
    this.viewport.scrollTop += (rows * row) / ratio;
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.#view / this.#rowHeight) - 1);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (event.target !== this.viewport || event.ctrlKey || event.metaKey || event.altKey) return;
    if (step && this.count) {
      event.preventDefault();
      const from = this.active < 0 && step > 0 ? -1 : this.active;
      this.activate(Math.max(0, Math.min(this.count - 1, from + step)));
    } else if (event.key === 'Enter' && this.active >= 0) {
      event.preventDefault();
      this.onenter(this.active);
    }
  }
}
