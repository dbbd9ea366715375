// The page before anything is followed: who the reader is, and what there is to follow.

import { AGAIN, mayPass } from '../gateway.js';
import { count, plural } from '../model/format.js';
import { label, parse, query, read } from '../model/ranges.js';
import { topFolders } from '../model/tree.js';
import { $, h, redraw } from './dom.js';

const MOST_CARDS = 24; // a card costs a request for its number of keys
const MOST_KEYS = 10_000; // keys of which the folders at the top are read, if every key may be read
const AT_ONCE = 4;

const isKey = (range) => parse(range).kind === 'key';

export class Start {
  #turn = 0;

  constructor(gateway, recent) { Object.assign(this, { gateway, recent }); }

  /** Ask who the reader is, and show what may be followed. `access` is the answer of /v1/access, or null. */
  async show() {
    const turn = ++this.#turn, { status, body } = await this.gateway.ask('v1/access');
    if (turn !== this.#turn) return null;
    // A token that is missing will not come by itself.
    if (mayPass(status)) setTimeout(() => turn === this.#turn && this.show(), AGAIN);
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
    redraw($('#cards'), ...groups.filter(Boolean));
    return ok ? body : null;
  }

  stop() { this.#turn++; }

  #group(title, ranges, turn, keysOnly) {
    const list = h('ul', { class: 'cards' });
    const cards = ranges.map((one) => ({ one, card: this.#card(query([parse(one)]), label(parse(one)), keysOnly.has(one) ? 'keys only' : '…') }));
    list.append(...cards.map(({ card }) => card));
    // Whether a single key exists is in its value only, which not everybody may read.
    this.#counts(cards.filter(({ one }) => !(keysOnly.has(one) && isKey(one))), turn, list);
    return ranges.length ? h('section', {}, h('h2', {}, title), list) : null;
  }

  #card(target, name, note = '') {
    return h('li', {}, h('a', { href: `#${target}` }, h('span', { class: 'mono' }, name), h('span', { class: 'note' }, note)));
  }

  async #counts(cards, turn, list) {
    const queue = [...cards], failed = [];
    const work = async () => {
      for (let next; (next = queue.shift()) && turn === this.#turn;) {
        const { status, body } = await this.#count(next.one);
        next.card.querySelector('.note').textContent = status === 200 ? plural(body.count ?? 1, 'key')
          : body.code === 'key-not-found' ? 'no key' : body.title ?? 'no answer';
        if (mayPass(status)) failed.push(next);
        if (next.one === 'prefix=' && status === 200) await this.#folders(list, body.count, turn);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    if (failed.length) setTimeout(() => turn === this.#turn && this.#counts(failed, turn, list), AGAIN);
  }

  /** A single key is asked for itself: the gateway counts only lists. */
  #count(range) { return this.gateway.ask(`v1/kv?${range}${isKey(range) ? '' : '&count_only=1'}`); }

  /** If every key may be read, the folders at the top say more than one card. */
  async #folders(list, total, turn) {
    const { status, body } = await this.gateway.ask(`v1/kv?prefix=&keys_only=1&limit=${MOST_KEYS}`);
    if (status !== 200) return;
    const folders = topFolders(body.kvs), last = [...folders.keys()].at(-1);
    // The keys come in their order, so only the last folder can have keys beyond those that were read.
    const whole = body.next_page && last ? await this.#count(query([{ kind: 'prefix', name: last }])) : null;
    if (turn !== this.#turn) return;
    if (whole?.status === 200) folders.set(last, whole.body.count);
    const most = [...folders].sort((a, b) => b[1] - a[1]).slice(0, MOST_CARDS);
    list.append(...most.map(([name, n]) => this.#card(query([{ kind: 'prefix', name }]), label({ kind: 'prefix', name }), plural(n, 'key'))));
    const rest = total - most.reduce((sum, [, n]) => sum + n, 0);
    if (most.length && rest > 0) list.after(h('p', { class: 'dim' }, `and ${plural(rest, 'key')} elsewhere: type a prefix above`));
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
