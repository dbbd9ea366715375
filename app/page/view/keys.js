// The table of the keys.

import { chosenFor, fieldsOf, sampleOf } from '../model/columns.js';
import { byteLength, count, duration, plural, preview, size } from '../model/format.js';
import { shown } from '../model/ranges.js';
import { $, h, pulse, redraw, setText } from './dom.js';
import { List } from './list.js';

const LONGEST = 300; // characters of a value in a cell; its length stands beside it
const CHARACTER = 7.6; // px, of the font of the cells
const SLOW = 40; // times as long as the last look at the values took, until the values are looked at again for columns

export class Keys {
  selected = null; // a key
  #session = null; #fields = []; #chosen = null; #head = h('div', { role: 'row', class: 'head' }); #sampled = -Infinity;

  /** `onselect(key)`; `onenter()`: the user wants to go to the value. */
  constructor({ onselect, onenter }) {
    this.onselect = onselect;
    this.list = new List($('#keys-grid'), {
      head: this.#head,
      make: () => h('div', { role: 'row' }),
      fill: (element, index) => this.#fill(element, index),
      onactive: (index) => this.select(this.#session.rows.order[index]),
      onenter,
    });
    $('#filter').addEventListener('input', () => { this.#session.rows.filter = $('#filter').value; this.rebuild(); });
    $('#filter').addEventListener('keydown', (event) => {
      if (event.key === 'Escape' || event.key === 'Enter' || event.key === 'ArrowDown') {
        event.preventDefault();
        if (event.key === 'Escape' && $('#filter').value) { $('#filter').value = this.#session.rows.filter = ''; this.rebuild(); }
        $('#keys-grid').focus();
      }
    });
    $('#columns-open').addEventListener('click', () => this.#menu($('#columns').hidden));
    document.addEventListener('keydown', (event) => { if (event.key === 'Escape' && !$('#columns').hidden) this.#menu(false, true); });
    document.addEventListener('click', (event) => { if (!event.target.closest('#columns, #columns-open')) this.#menu(false); });
  }

  start(session) {
    Object.assign(this, { selected: null });
    this.#session = session;
    [this.#fields, this.#chosen, this.#sampled] = [[], null, -Infinity];
    $('#filter').value = '';
    $('#columns').hidden = true;
    this.list.active = -1;
    $('#keys-grid').scrollTop = 0;
    this.#columns();
    this.draw(new Set());
  }

  set scope(path) {
    this.#session.rows.scope = path;
    this.rebuild();
  }

  rebuild() {
    this.#session.rows.rebuild(this.#session.entries);
    this.draw(new Set());
  }

  select(key) {
    this.selected = key ?? null;
    this.onselect(this.selected);
  }

  /** Show the rows as they are; the rows of these keys pulse. */
  draw(changed) {
    const { rows, entries, mirror } = this.#session;
    if (performance.now() - this.#sampled > 3000 && entries.size) this.#sample();
    this.list.count = rows.order.length;
    this.list.active = this.selected === null ? -1 : rows.indexOf(this.selected);
    $('#keys-grid').setAttribute('aria-rowcount', rows.order.length + 1);
    this.list.draw();
    const all = rows.order.length === entries.size;
    setText($('#count'), this.#session.synced ? (all ? plural(entries.size, 'key') : `${count(rows.order.length)} of ${plural(entries.size, 'key')}`) : '');
    const bare = this.#session.ranges.find(({ name }) => name && !name.startsWith('/'));
    const nothing = !this.#session.synced ? '' : !entries.size ? `No keys here now. They appear as soon as somebody writes them.${bare ? ` Did you mean /${shown(bare.name)}?` : ''}`
      : rows.order.length ? '' : 'No key matches the filter.';
    setText($('#empty'), nothing);
    $('#empty').hidden = !nothing;
    if (changed.size && mirror) for (const [element] of this.list.seen()) if (changed.has(element.key)) pulse(element);
  }

  /** Show the ages anew. */
  tick(now) {
    for (const [element] of this.list.seen()) setText(element.lastChild, this.#age(element.key, now));
  }

  #age(key, now = Date.now()) {
    const at = this.#session.changedAt.get(key);
    return at === undefined ? '' : duration(now - at);
  }

  // --- columns ------------------------------------------------------------------------------------------------------

  #sample() {
    const started = performance.now();
    const sample = sampleOf(this.#session.entries);
    this.#fields = fieldsOf(sample, this.#session.members.of);
    this.#sampled = started + SLOW * (performance.now() - started);
    const before = JSON.stringify(this.#columnsNow);
    if (before !== this.#shownColumns) this.#columns();
  }

  #shownColumns = '';
  get #columnsNow() { return this.#chosen ?? chosenFor(this.#fields); }

  #columns() {
    const fields = this.#columnsNow, grid = $('#keys-grid');
    this.#shownColumns = JSON.stringify(fields);
    const value = !fields.length && !this.#session.keysOnly;
    grid.classList.toggle('fields', !value);
    const width = (name) => Math.max(name.length, this.#fields.find(({ field }) => field === name)?.width ?? 0);
    grid.style.setProperty('--columns', ['minmax(11rem, 26fr)', ...(value ? ['minmax(10rem, 40fr)'] : []),
      ...fields.map((field) => `minmax(${CHARACTER * (Math.min(13, width(field)) + 1)}px, ${Math.min(30, width(field)) + 1}fr)`), '4.6rem', '4.2rem'].join(' '));
    grid.setAttribute('aria-colcount', 3 + (value ? 1 : fields.length));
    const { sort } = this.#session.rows;
    const column = (by, text, name = '') => {
      const own = sort.by === by && (by !== 'field' || sort.field === text);
      return h('div', {
        role: 'columnheader', class: name, 'aria-sort': own ? (sort.down ? 'descending' : 'ascending') : by ? 'none' : null,
      }, by ? h('button', { class: 'sort', onclick: () => this.#sortBy(by, text, own) }, text, own ? (sort.down ? ' ↓' : ' ↑') : '') : text);
    };
    redraw(this.#head, column('key', 'Key'), ...(this.#session.keysOnly ? [] : [column('', 'Value', 'preview')]),
      ...fields.map((field) => column('field', field, 'field')), column('revision', 'Revision', 'right'), column('', 'Changed', 'right'));
    this.#head.setAttribute('aria-rowindex', 1);
    for (const [element] of this.list.seen()) element.key = undefined;
  }

  #sortBy(by, field, again) {
    const { rows } = this.#session;
    rows.sort = { by, field, down: again ? !rows.sort.down : by === 'revision' };
    this.#columns();
    this.rebuild();
  }

  #menu(open, focus = false) {
    $('#columns').hidden = !open;
    $('#columns-open').setAttribute('aria-expanded', open);
    if (focus) $('#columns-open').focus();
    if (!open) return;
    this.#sample();
    const chosen = new Set(this.#columnsNow);
    const choose = () => {
      this.#chosen = this.#fields.map(({ field }) => field).filter((field) => chosen.has(field));
      this.#columns();
      this.rebuild();
    };
    $('#columns').replaceChildren(
      this.#fields.length ? h('p', {}, 'Members of the JSON values') : h('p', {}, 'These values are not JSON objects, so there are no columns to choose.'),
      ...this.#fields.slice(0, 60).map(({ field, share }) => h('label', {},
        h('input', { type: 'checkbox', checked: chosen.has(field), onchange: ({ target }) => {
          if (target.checked) chosen.add(field); else chosen.delete(field);
          choose();
        } }), h('span', { class: 'mono' }, field), h('span', { class: 'dim' }, share < 0.995 ? ` in ${Math.round(share * 100)} %` : ''))),
      ...(this.#fields.length > 60 ? [h('p', { class: 'dim' }, `and ${this.#fields.length - 60} rarer ones, which only the filter reaches`)] : []));
    $('#columns input')?.focus();
  }

  // --- rows ---------------------------------------------------------------------------------------------------------

  #fill(element, index) {
    const key = this.#session.rows.order[index], entry = this.#session.entries.get(key);
    element.setAttribute('aria-rowindex', index + 2);
    element.setAttribute('aria-selected', key === this.selected);
    // The mirror is ahead of the rows until the next frame: a key may be gone.
    if (!entry || (element.key === key && element.entry === entry)) return;
    if (element.key !== key) for (const animation of element.getAnimations()) animation.cancel();
    Object.assign(element, { key, entry });
    element.replaceChildren(...this.#cells(key, entry));
  }

  #cells(key, entry) {
    const cell = (name, ...text) => h('div', { role: 'gridcell', class: name }, ...text);
    const cells = [cell('mono key', shown(key))];
    if (!this.#session.keysOnly) cells.push(this.#preview(entry, cell));
    const members = this.#session.members.of(entry);
    for (const field of this.#columnsNow) {
      const member = members?.get(field);
      cells.push(cell(`mono field ${member?.kind ?? ''}`, member ? preview(member.text, LONGEST).text : ''));
    }
    cells.push(cell('number right', count(entry.modRevision)), cell('dim right', this.#age(key)));
    return cells;
  }

  #preview(entry, cell) {
    const bytes = byteLength(entry);
    if (entry.valueBase64 !== undefined) return cell('preview dim', `${plural(bytes, 'byte')} that are not text`);
    const { text, more } = preview(entry.value ?? '', LONGEST);
    return cell('preview mono', text, more ? h('span', { class: 'more' }, ` … ${size(bytes)}`) : null);
  }
}
