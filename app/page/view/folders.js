// The tree of the folders. A folder that is chosen limits the table to its keys.

import { count } from '../model/format.js';
import { shown } from '../model/ranges.js';
import { $, h, pulse, setText } from './dom.js';
import { List } from './list.js';

const make = () => h('div', { role: 'treeitem' },
  h('span', { class: 'twist', 'aria-hidden': 'true' }), h('span', { class: 'name mono' }), h('span', { class: 'number' }));

export class Folders {
  #rows = []; #open = new Set(); #session = null; #scope = '';

  /** `onscope(path)`: only the keys in this folder are wanted. */
  constructor(onscope) {
    this.onscope = onscope;
    this.list = new List($('#tree'), {
      make,
      fill: (element, index) => this.#fill(element, this.#rows[index], index),
      onenter: (index) => this.#choose(index),
    });
    $('#tree').addEventListener('keydown', (event) => this.#key(event));
    $('#tree').addEventListener('click', (event) => {
      const item = event.target.closest('[role=treeitem]');
      if (!item) return;
      const index = Number(item.id.split('-').at(-1));
      if (event.target.matches('.twist')) this.#toggle(index, this.#rows[index].open === false);
      else this.#choose(index);
    });
  }

  start(session) {
    [this.#session, this.#scope] = [session, ''];
    this.#open = new Set(session.tree.roots.map(({ path }) => path));
    this.list.active = -1;
    this.draw(new Set());
  }

  /** Show the folders as they are; the folders of these keys pulse. */
  draw(changed) {
    const { tree } = this.#session;
    this.#rows = tree.rows(this.#open);
    this.list.count = this.#rows.length;
    this.list.draw();
    if (!changed.size || changed.size > 500) return;
    const touched = new Set([...changed].flatMap((key) => tree.paths(key)));
    for (const [element, index] of this.list.seen()) if (touched.has(this.#rows[index].path)) pulse(element.lastChild);
  }

  #fill(element, row, index) {
    const [twist, name, number] = element.children;
    setText(twist, row.open === null ? '' : row.open ? '▾' : '▸');
    setText(name, shown(row.label) || 'every key');
    setText(number, count(row.count));
    element.className = `level-${Math.min(row.level, 8)}${index === this.list.active ? ' active' : ''}`;
    element.title = shown(row.path);
    element.setAttribute('aria-level', row.level + 1);
    element.setAttribute('aria-selected', row.path === this.#scope);
    if (row.open === null) element.removeAttribute('aria-expanded');
    else element.setAttribute('aria-expanded', row.open);
  }

  #choose(index) {
    const { path, open } = this.#rows[index], again = path === this.#scope;
    this.#scope = again ? '' : path;
    if (open === false) this.#open.add(path);
    this.onscope(this.#scope);
    this.draw(new Set());
  }

  #toggle(index, open) {
    const { path } = this.#rows[index];
    if (open) this.#open.add(path); else this.#open.delete(path);
    this.draw(new Set());
  }

  #key(event) {
    const row = this.#rows[this.list.active];
    if (!row || !['ArrowRight', 'ArrowLeft'].includes(event.key)) return;
    event.preventDefault();
    if (event.key === 'ArrowRight' && row.open === false) this.#toggle(this.list.active, true);
    else if (event.key === 'ArrowLeft' && row.open) this.#toggle(this.list.active, false);
    else if (event.key === 'ArrowLeft') this.#up(row);
  }

  #up({ level }) {
    for (let at = this.list.active - 1; at >= 0; at--) if (this.#rows[at].level < level) return this.list.activate(at);
  }
}
