// What the page follows now: one mirror, and everything that is made of its changes. Another address or another token
// makes another session.

import { connectShared } from './client/shared.js';
import { Members } from './model/columns.js';
import { mustDrop } from './model/condition.js';
import { Events, LARGEST, weightOf } from './model/events.js';
import { forClient, outermost } from './model/ranges.js';
import { Rows } from './model/rows.js';
import { Tree } from './model/tree.js';

const REMEMBERED = 5000; // keys whose previous entry is kept for the difference, with at most LARGEST characters

export class Session {
  changedAt = new Map(); // key -> when this page saw the last change
  previous = new Map(); // key -> the entry before the last change; the last entry of a deleted key
  startedAt = Date.now();
  dirty = { keys: new Set(), all: false, state: true };
  members = new Members();
  events = new Events(this.members.of);
  rows = new Rows(this.members.of);
  synced = false; // whether a state was ever complete
  #weight = 0; // of the previous entries
  #waiting = new Set(); // keys that the rows do not follow yet
  #next = 0; // when the rows may be made anew

  /** `onchange()`: there is something to draw; `onrevoked()`: what is shown may no longer be read. */
  constructor(home, ranges, { token = '', keysOnly = false, worker, onchange, onrevoked }) {
    Object.assign(this, { ranges, token, keysOnly, onchange, onrevoked, tree: new Tree(outermost(ranges)) });
    const options = { ...(keysOnly && { keysOnly }), ...(token && { token }) };
    this.mirror = connectShared(worker, home, ranges.map(forClient), options);
    this.mirror.addEventListener('changes', ({ detail }) => this.#take(detail));
    this.mirror.addEventListener('state', () => this.#state());
    this.#state();
  }

  get entries() { return this.mirror.entries; }

  /** When everything that is shown was last known to be current. */
  get currentAt() { return this.mirror.provenAt ?? this.startedAt; }

  close() {
    this.onchange = () => {};
    this.mirror.close();
  }

  #state() {
    this.synced ||= this.mirror.state === 'live' || this.mirror.provenAt !== null;
    // Not with the next frame: a tab in the background has none, and the next try may end in a state that may stay.
    if (this.synced && mustDrop(this.mirror)) return this.onrevoked();
    this.dirty.state = true;
    this.onchange();
  }

  #take({ revision, changes, reset }) {
    const now = Date.now(), first = !this.synced && reset !== undefined;
    for (const { type, key, previous } of changes) {
      if (type === 'put' && !previous) this.tree.add(key);
      if (type === 'delete' && previous) this.tree.remove(key);
      if (first) continue;
      this.changedAt.set(key, now);
      if (previous) this.#remember(key, previous);
      this.dirty.keys.add(key);
    }
    // A tab in the background draws nothing.
    if (this.dirty.keys.size > REMEMBERED) [this.dirty.all, this.dirty.keys] = [true, new Set()];
    if (first) this.dirty.all = true; // the first state is no news
    else this.events.add(now, revision, changes, reset);
    this.onchange();
  }

  #remember(key, previous) {
    this.#weight += weightOf(previous) - weightOf(this.previous.get(key));
    this.previous.delete(key); // so that the Map is in the order of the changes
    this.previous.set(key, previous);
    for (const [oldest, entry] of this.previous) {
      if (this.previous.size <= REMEMBERED && this.#weight <= LARGEST) return;
      this.previous.delete(oldest);
      this.#weight -= weightOf(entry);
      if (!this.entries.has(oldest)) this.changedAt.delete(oldest); // names that never come again must not pile up
    }
  }

  /** What has changed since the last call; the rows follow. */
  takeDirty() {
    const dirty = this.dirty;
    this.dirty = { keys: new Set(), all: false, state: false };
    for (const key of dirty.keys) this.#waiting.add(key);
    if (dirty.all || this.#waiting.size) this.#order(dirty.all);
    return dirty;
  }

  /** Rows that depend on values are sorted anew at each change: at most for a tenth of the time. */
  #order(all) {
    const now = performance.now(), gone = () => [...this.#waiting].some((key) => !this.entries.has(key));
    if (!all && this.rows.followsValues && now < this.#next && !gone()) {
      this.timer ??= setTimeout(() => { this.timer = null; this.dirty.state = true; this.onchange(); }, this.#next - now);
      return;
    }
    if (all) this.rows.rebuild(this.entries); else this.rows.update(this.#waiting, this.entries);
    this.#waiting.clear();
    this.#next = now + 10 * (performance.now() - now);
  }
}
