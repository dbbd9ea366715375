// The page before anything is followed: who the reader is, and what there is to follow.

import { count, plural } from '../model/format.js';
import { label, parse, query, read } from '../model/ranges.js';
import { $, h } from './dom.js';

const MOST_CARDS = 24; // a card costs a request for its number of keys
const MOST_KEYS = 10_000; // keys of which the folders at the top are read, if everything may be read
const AT_ONCE = 4;
const AGAIN = 3000; // ms

export class Start {
  #turn = 0;

  constructor(gateway, recent) { Object.assign(this, { gateway, recent }); }

  /** Ask who the reader is, and show what may be followed. `access` is the answer of /v1/access, or null. */
  async show() {
    const turn = ++this.#turn, { status, body } = await this.gateway.ask('v1/access');
    if (turn !== this.#turn) return null;
    // What may pass is asked again; a token that is missing will not come by itself.
    if (status === 0 || status >= 500) setTimeout(() => turn === this.#turn && this.show(), AGAIN);
    const ok = status === 200;
    $('#problem').hidden = ok;
    $('#problem').replaceChildren(...(ok ? [] : [h('b', {}, status === 401 ? 'This gateway asks for a token.' : body.title), ` ${body.detail ?? ''} `,
      status === 401 ? h('button', { class: 'strong', onclick: () => $('#token-open').click() }, 'Enter a token') : null].filter(Boolean)));
    $('#identity').textContent = ok && body.identity !== 'anonymous'
      ? `You are ${body.identity}${body.roles.length ? `, with ${body.roles.length === 1 ? 'the role' : 'the roles'} ${body.roles.join(', ')}` : ''}.` : '';
    const groups = [];
    if (ok) groups.push(this.#group('You may follow', [...body.read, ...body.keys_only].slice(0, MOST_CARDS), turn, new Set(body.keys_only)));
    if (ok && !body.read.length && !body.keys_only.length) groups.push(h('p', { class: 'empty' }, 'Your identity may read nothing here. Ask the operator for a role.'));
    const many = ok ? body.read.length + body.keys_only.length - MOST_CARDS : 0;
    if (many > 0) groups.push(h('p', { class: 'dim' }, `and ${count(many)} more, which you can type above`));
    const recent = this.recent.list();
    if (recent.length) groups.push(h('section', {}, h('h2', {}, 'Recently followed'), h('ul', { class: 'cards' }, ...recent.map((one) => this.#card(one, read(one).map(label).join(' + '))))));
    $('#cards').replaceChildren(...groups.filter(Boolean));
    return ok ? body : null;
  }

  stop() { this.#turn++; }

  #group(title, ranges, turn, keysOnly) {
    const list = h('ul', { class: 'cards' });
    const cards = ranges.map((one) => ({ one, card: this.#card(query([parse(one)]), label(parse(one)), keysOnly.has(one) ? 'keys only' : '…') }));
    list.append(...cards.map(({ card }) => card));
    this.#counts(cards, turn, list);
    return ranges.length ? h('section', {}, h('h2', {}, title), list) : null;
  }

  #card(target, name, note = '') {
    return h('li', {}, h('a', { href: `#${target}` }, h('span', { class: 'mono' }, name), h('span', { class: 'note' }, note)));
  }

  async #counts(cards, turn, list) {
    const queue = [...cards];
    const work = async () => {
      for (let next; (next = queue.shift()) && turn === this.#turn;) {
        const { status, body } = await this.gateway.ask(`v1/kv?${next.one}&count_only=1`);
        const note = next.card.querySelector('.note');
        note.textContent = status === 200 ? plural(body.count, 'key') : status === 404 ? 'no key' : body.title ?? 'no answer';
        if (next.one === 'prefix=' && status === 200 && body.count <= MOST_KEYS && turn === this.#turn) await this.#folders(list, turn);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
  }

  /** If every key may be read, its folders at the top say more than one card. */
  async #folders(list, turn) {
    const { status, body } = await this.gateway.ask(`v1/kv?prefix=&keys_only=1&limit=${MOST_KEYS}`);
    if (status !== 200 || body.next_page || turn !== this.#turn) return;
    const folders = new Map();
    for (const { key, key_encoding } of body.kvs) {
      const found = !key_encoding && /^\/?[^/]*\//.exec(key);
      if (found) folders.set(found[0], (folders.get(found[0]) ?? 0) + 1);
    }
    const most = [...folders].sort((a, b) => b[1] - a[1]).slice(0, MOST_CARDS);
    list.append(...most.map(([name, n]) => this.#card(query([{ kind: 'prefix', name }]), label({ kind: 'prefix', name }), plural(n, 'key'))));
  }
}

/** The addresses that were followed last, kept by the browser. */
export class Recent {
  #name = 'etcd-watch-gateway.recent';

  list() {
    try {
      return JSON.parse(localStorage.getItem(this.#name)) ?? [];
    } catch {
      return []; // the browser keeps nothing here
    }
  }

  add(target) {
    try {
      localStorage.setItem(this.#name, JSON.stringify([target, ...this.list().filter((one) => one !== target)].slice(0, 8)));
    } catch { /* the browser keeps nothing here */ }
  }
}
