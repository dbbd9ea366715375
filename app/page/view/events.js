// The log of the changes, the newest first. The events of a transaction hang together.

import { count, plural, preview, timeOfDay } from '../model/format.js';
import { shown } from '../model/ranges.js';
import { $, h, setText } from './dom.js';
import { List } from './list.js';

const make = () => h('div', { role: 'row' }, ...['time', 'type', 'mono key', 'number right', 'mono preview'].map((name) => h('div', { role: 'gridcell', class: name })));

export class EventLog {
  #session = null;

  /** `onselect(key)`: the user wants to see this key. */
  constructor(onselect) {
    this.list = new List($('#events-list'), {
      make,
      fill: (element, index) => this.#fill(element, this.#session.events.shown[index], index),
      onactive: (index) => onselect(this.#session.events.shown[index].key),
    });
    $('#events-filter').addEventListener('input', () => { this.#session.events.filter = $('#events-filter').value; this.draw(); });
    $('#pause').addEventListener('click', () => this.pause());
    $('#clear').addEventListener('click', () => { this.#session.events.clear(); this.draw(); });
    $('#export').addEventListener('click', () => this.#export());
  }

  start(session) {
    this.#session = session;
    $('#events-filter').value = '';
    this.list.active = -1;
    this.#last = this.#top = null; // what may no longer be shown is not kept
    this.draw();
  }

  pause() {
    const { events } = this.#session;
    events.paused = !events.paused;
    this.draw();
  }

  draw() {
    const { events } = this.#session, list = events.shown;
    const active = this.#active && list.indexOf(this.#active);
    this.list.active = active ?? -1;
    const above = $('#events-list').scrollTop > 0 ? list.indexOf(this.#top) : 0;
    this.list.count = list.length;
    if (above > 0) this.list.shift(above);
    this.#top = list[0];
    $('#events-list').setAttribute('aria-rowcount', list.length);
    this.list.draw();
    setText($('#pause'), events.paused ? `Resume (${count(events.waiting)} new)` : 'Pause');
    $('#pause').setAttribute('aria-pressed', events.paused);
    $('#export').disabled = $('#clear').disabled = !events.list.length;
    const nothing = list.length || !this.#session.synced ? '' : events.list.length ? 'No event matches the filter.' : 'The next change is shown here.';
    setText($('#events-empty'), nothing);
    $('#events-empty').hidden = !nothing;
    setText($('#events-count'), [
      list.length === events.list.length || events.paused ? plural(list.length, 'event') : `${count(list.length)} of ${plural(events.list.length, 'event')}`,
      events.dropped ? `${count(events.dropped)} older ones dropped` : '',
    ].filter(Boolean).join(', '));
  }

  get #active() { return this.list.active >= 0 ? this.#last?.[this.list.active] : null; }
  #last = null; #top = null; // the newest event when the list was drawn

  #fill(element, event, index) {
    this.#last = this.#session.events.shown;
    element.setAttribute('aria-rowindex', index + 1);
    if (element.event === event) return;
    element.event = event;
    const [time, type, key, revision, value] = element.children;
    // The list is turned: the last event of a transaction stands at its top.
    element.className = [event.type, event.of > 1 ? 'grouped' : '', event.reset ? 'found' : '', event.last ? 'top' : '', event.first ? 'bottom' : ''].filter(Boolean).join(' ');
    setText(time, event.last ? timeOfDay(event.time) : '');
    setText(type, event.type);
    setText(key, shown(event.key));
    setText(revision, event.last || event.reset ? count(event.revision) : '');
    element.title = event.reset ? `Differences to the state before a reset (${event.reset})` : event.of > 1 ? `One transaction of ${event.of} events` : '';
    const { text, more } = preview(event.entry?.value ?? '', 300);
    setText(value, event.entry?.valueBase64 !== undefined ? 'no text' : text + (more ? ' …' : ''));
  }

  #export() {
    const url = URL.createObjectURL(new Blob([this.#session.events.export()], { type: 'application/x-ndjson' }));
    h('a', { href: url, download: 'events.ndjson' }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }
}
