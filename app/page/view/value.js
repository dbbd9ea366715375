// The value of the selected key: as JSON, text or hex, and what its last change was.

import { diffLines, folded } from '../model/diff.js';
import { byteLength, bytesOf, count, duration, hexLines, plural, size } from '../model/format.js';
import { indent, Lines } from '../model/json.js';
import { copied, curlKey, shown } from '../model/ranges.js';
import { $, copyButton, h, redraw, setText } from './dom.js';

const MOST_LINES = 2000; // lines that are shown at once: more of them take a browser longer than a frame
const MOST_CHARACTERS = 200_000;
const FORMS = { json: 'JSON', text: 'Text', hex: 'Hex', changes: 'Changes' };
const MARKS = { added: '+', removed: '−', same: ' ', gap: '⋯' };

export class Value {
  #key = null; #entry = null; #session = null; #wanted = 'json'; #all = false; #read = new Lines();

  constructor(home) {
    this.home = home;
    $('#forms').append(...Object.entries(FORMS).map(([form, name]) => h('button', {
      role: 'tab', id: `form-${form}`, 'aria-controls': 'value-content', onclick: () => this.#choose(form),
    }, name)));
    $('#forms').addEventListener('keydown', ({ key }) => {
      const forms = this.#forms(), step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (step) this.#choose(forms.at((forms.indexOf(this.form) + step) % forms.length), true);
    });
  }

  start(session) {
    this.#session = session;
    this.show(null);
  }

  /** The forms that this value has. */
  #forms() {
    const entry = this.#entry, forms = [];
    if (entry && entry.valueBase64 === undefined && this.#read.of(entry)) forms.push('json');
    if (entry && entry.valueBase64 === undefined) forms.push('text');
    return [...forms, 'hex', 'changes'];
  }

  get form() { const forms = this.#forms(); return forms.includes(this.#wanted) ? this.#wanted : forms[0]; }

  #choose(form, focus = false) {
    [this.#wanted, this.#all] = [form, false];
    this.#draw();
    if (focus) $(`#form-${form}`).focus();
  }

  /** Show this key, and nothing if it is null. */
  show(key) {
    [this.#key, this.#entry, this.#all, this.#read] = [key, null, false, new Lines()];
    this.update(true);
  }

  /** Show the key as it is now. */
  update(force = false) {
    const entry = this.#key === null ? null : this.#session.entries.get(this.#key) ?? null;
    if (!force && entry === this.#entry) return;
    this.#entry = entry;
    this.#draw();
  }

  tick(now) {
    const at = this.#session?.changedAt.get(this.#key), place = $('#value-age');
    if (place) setText(place, at === undefined ? `more than ${duration(now - this.#session.startedAt)} ago` : `${duration(now - at)} ago`);
  }

  #draw() {
    const known = this.#entry ?? this.#session.previous.get(this.#key);
    $('#forms').hidden = !known || this.#session.keysOnly;
    if (this.#key === null || !known) {
      redraw($('#value-body'), h('p', { class: 'empty' }, this.#key === null ? 'Select a key to see its value.' : 'This key does not exist now.'));
      return;
    }
    const forms = this.#forms();
    for (const form of Object.keys(FORMS)) {
      const tab = $(`#form-${form}`), on = form === this.form;
      tab.hidden = !forms.includes(form);
      tab.setAttribute('aria-selected', on);
      tab.tabIndex = on ? 0 : -1;
    }
    redraw($('#value-body'), this.#head(known), this.#session.keysOnly
      ? h('p', { class: 'empty' }, 'You may read the keys here, but not their values.')
      : h('div', { id: 'value-content', role: 'tabpanel', tabindex: 0, 'aria-labelledby': `form-${this.form}` }, ...this.#content(known)));
    this.tick(Date.now());
  }

  #head(entry) {
    const token = Boolean(this.#session.token), bare = this.#session.keysOnly, gone = this.#entry === null;
    const name = copied(this.#key);
    const command = curlKey(this.home, this.#key, { token });
    const fact = (name, ...what) => h('div', {}, h('dt', {}, name), h('dd', {}, ...what));
    return h('div', { class: 'value-head' },
      h('p', { class: 'value-key mono' }, shown(this.#key)),
      gone ? h('p', { class: 'note' }, 'This key was deleted. Here is its last value.') : null,
      h('dl', { class: 'facts' },
        fact('revision', count(entry.modRevision)), fact('created at', count(entry.createRevision)),
        fact('version', count(entry.version)), fact('lease', h('span', { class: 'mono' }, entry.lease ?? 'none')),
        bare ? null : fact('size', size(byteLength(entry))),
        fact(gone ? 'deleted' : 'changed', h('span', { id: 'value-age' }))),
      h('div', { class: 'copies' }, h('span', { class: 'dim' }, 'Copy'), copyButton(name === this.#key ? 'key' : 'key, percent-encoded', () => name),
        ...(bare ? [] : [copyButton('value', () => entry.value ?? entry.valueBase64), copyButton('curl', () => command)])),
      // Whoever may read only the keys is refused a single one.
      bare ? null : h('pre', { class: 'command', tabindex: 0, 'aria-label': 'The same in a shell' }, command));
  }

  #content(entry) {
    if (this.form === 'changes') return this.#changes(entry);
    if (this.form === 'hex') return this.#lines(hexLines(bytesOf(entry)), ({ offset, hex, text }) =>
      [h('span', { class: 'dim' }, offset), `  ${hex}  `, h('span', { class: 'string' }, text), '\n'], 'hex');
    const text = entry.value ?? '';
    if (!text) return [h('p', { class: 'empty' }, 'The value is empty.')];
    if (this.form === 'text') return this.#text(text);
    if (text.length > MOST_CHARACTERS) return this.#text(this.#read.laidOut(entry).join('\n')); // an element for each token would take seconds
    return this.#lines(this.#read.of(entry), ({ depth, tokens }) =>
      [indent(depth), ...tokens.map(({ kind, text: part }) => h('span', { class: kind }, part)), '\n']);
  }

  #lines(lines, draw, name = '') {
    const some = this.#all ? lines : lines.slice(0, MOST_LINES);
    return [some.length < lines.length ? this.#notice(some.length, lines.length, 'lines') : null,
      h('pre', { class: `content ${name}` }, some.flatMap(draw))].filter(Boolean);
  }

  #text(text) {
    if (this.#all || text.length <= MOST_CHARACTERS) return [h('pre', { class: 'content' }, text)];
    return [this.#notice(MOST_CHARACTERS, text.length, 'characters'), h('pre', { class: 'content' }, text.slice(0, MOST_CHARACTERS))];
  }

  #notice(some, all, unit) {
    return h('p', { class: 'note' }, `The first ${count(some)} of ${count(all)} ${unit} are shown. `,
      h('button', { class: 'quiet', onclick: () => { this.#all = true; this.#draw(); } }, 'Show all'));
  }

  #changes(entry) {
    const before = this.#session.previous.get(this.#key), gone = this.#entry === null;
    if (!before) return [h('p', { class: 'empty' }, 'This key has not changed since the page was opened. The next change is shown here, line by line.')];
    const linesOf = (one) => (one.valueBase64 === undefined ? this.#read.laidOut(one) : hexLines(bytesOf(one)).map(({ hex, text }) => `${hex}  ${text}`));
    const lines = diffLines(linesOf(before), gone ? [] : linesOf(entry));
    const sum = (kind) => lines.filter((line) => line.kind === kind).length;
    const what = gone ? `Revision ${count(before.modRevision)}, then deleted` : `From revision ${count(before.modRevision)} to ${count(entry.modRevision)}`;
    const nothing = !gone && sum('added') + sum('removed') === 0;
    return [h('p', { class: 'note plain' }, `${what}: `, nothing ? 'the same value was written again.'
      : `${plural(sum('added'), 'line')} added, ${count(sum('removed'))} removed.`),
    ...(nothing ? [] : this.#lines(folded(lines), (line) => h('span', { class: line.kind },
      `${MARKS[line.kind]} ${line.kind === 'gap' ? plural(line.count, 'equal line') : line.text}\n`), 'diff'))];
  }
}
