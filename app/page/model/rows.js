// The identities of the entries that the table shows, in order. To sort a few thousand identities again costs less than a
// frame; to do so for each of a thousand changes a second would not. So changes of a few keys are inserted one by one.

import { compareCells } from './columns.js';
import { compile, onlyKeys } from './filter.js';

const FEW = 64; // changes, up to which an insertion each is cheaper than a sort

export class Rows {
  order = []; // identities
  scope = ''; // only keys that begin with this
  #filter = ''; #matches = null;
  sort = { by: 'key', down: false }; // by: "key", "revision", or "field", which is a member of the JSON value
  #members;

  constructor(members) { this.#members = members; }

  get filter() { return this.#filter; }
  set filter(text) { [this.#filter, this.#matches] = [text, compile(text)]; }

  /** Whether a put of a known key can change the order or the selection. */
  get followsValues() { return this.sort.by !== 'key' || !onlyKeys(this.#filter); }

  #wants(entry) {
    return entry.key.startsWith(this.scope) && (!this.#matches || this.#matches(entry, this.#members));
  }

  rebuild(entries) {
    this.order = [];
    for (const [id, entry] of entries) if (this.#wants(entry)) this.order.push(id);
    if (this.sort.by === 'key') this.order.sort();
    else this.#sortBy(entries);
    if (this.sort.down) this.order.reverse();
  }

  #sortBy(entries) {
    const cell = this.sort.by === 'revision'
      ? (id) => ({ kind: 'number', text: entries.get(id).modRevision })
      : (id) => this.#members(entries.get(id))?.get(this.sort.field);
    const cells = new Map(this.order.map((id) => [id, cell(id)]));
    this.order.sort((a, b) => compareCells(cells.get(a), cells.get(b)) || (a < b ? -1 : 1));
  }

  /** Follow changes: identities that were written or deleted. */
  update(ids, entries) {
    if (this.followsValues || ids.size > FEW) return this.rebuild(entries);
    for (const id of ids) {
      const at = this.#place(id), there = this.order[at] === id;
      const wanted = entries.has(id) && this.#wants(entries.get(id));
      if (wanted !== there) this.order.splice(at, there ? 1 : 0, ...(there ? [] : [id]));
    }
  }

  #place(id) {
    let [low, high] = [0, this.order.length];
    while (low < high) {
      const middle = (low + high) >> 1, before = this.sort.down ? this.order[middle] > id : this.order[middle] < id;
      if (before) low = middle + 1; else high = middle;
    }
    return low;
  }

  /** The index of an identity; -1 if the table does not show it. */
  indexOf(id) {
    if (this.followsValues) return this.order.indexOf(id);
    const at = this.#place(id);
    return this.order[at] === id ? at : -1;
  }
}
