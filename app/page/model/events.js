// What has happened since the page was opened: the last events, by revision. All events of a revision are one
// transaction of etcd, and stand together.

import { compile } from './filter.js';

const MOST = 5000; // events. Older ones are dropped, and counted
export const LARGEST = 50_000_000; // characters of their values: of large values, 5,000 are more than a tab may have

/** The characters that an entry keeps in memory. */
export const weightOf = (entry) => (entry?.valueBase64 ?? entry?.value ?? '').length;

const weigh = ({ entry, previous }) => weightOf(entry ?? previous);

export class Events {
  // {time, revision, type, key, entry, previous, reset, first, last, of}: previous = the entry that a delete has deleted,
  // of = events of this revision
  list = [];
  dropped = 0;
  #members; #filter = ''; #matches = null; #shown = null; #held = null; #weight = 0;

  constructor(members) { this.#members = members; }

  /**
   * `reset`: the changes are no transaction, but the differences that a new state has to the old one, and why it came.
   */
  add(time, revision, changes, reset) {
    changes.forEach((change, at) => this.list.push({
      time, revision: (reset && change.entry?.modRevision) ?? revision, ...change, reset,
      previous: change.entry ? undefined : change.previous,
      first: at === 0, last: at === changes.length - 1, of: changes.length,
    }));
    for (const change of changes) this.#weight += weigh(change);
    if (this.list.length > MOST * 1.1 || this.#weight > LARGEST) this.#drop();
    this.#shown = null;
  }

  #drop() {
    let many = 0;
    while (this.list.length - many > MOST || this.#weight > LARGEST) this.#weight -= weigh(this.list[many++]);
    this.dropped += this.list.splice(0, many).length;
  }

  clear() { [this.list, this.dropped, this.#shown, this.#weight] = [[], 0, null, 0]; if (this.#held) this.#held = []; }

  get filter() { return this.#filter; }
  set filter(text) { [this.#filter, this.#matches, this.#shown] = [text, compile(text), null]; }

  /** While it is paused, `shown` stays as it is. */
  get paused() { return this.#held !== null; }
  set paused(yes) { [this.#held, this.#shown] = [yes ? [...this.list] : null, null]; }

  /** The events that came since the pause began. */
  get waiting() {
    const last = this.#held?.at(-1);
    return this.#held ? this.list.length - (last ? this.list.lastIndexOf(last) + 1 : 0) : 0;
  }

  /** The events that match the filter, the newest first. */
  get shown() {
    const matches = ({ key, entry, previous, type }) =>
      this.#matches({ key, value: `${type} ${entry?.value ?? previous?.value ?? ''}` }, () => this.#members(entry ?? previous));
    return (this.#shown ??= (this.#held ?? this.list).filter((event) => !this.#matches || matches(event)).reverse());
  }

  /** What is shown, as NDJSON, the oldest first: the members have the names of the gateway's stream. */
  export() {
    return [...this.shown].reverse().map(({ time, type, key, revision, entry }) => JSON.stringify({
      time: new Date(time).toISOString(), type, key, mod_revision: revision,
      ...(entry && { value: entry.valueBase64 ?? entry.value, version: entry.version }),
      ...(entry?.valueBase64 !== undefined && { encoding: 'base64' }),
    })).join('\n') + '\n';
  }
}
