// The ranges that are followed, as chips with a field for one more.

import { label, same, typed } from '../model/ranges.js';
import { $, h, redraw } from './dom.js';

export class Address {
  /** `onchange(ranges)`: the user wants these ranges. */
  constructor(onchange) {
    this.ranges = [];
    this.onchange = onchange;
    $('#address').addEventListener('submit', (event) => {
      event.preventDefault();
      const range = typed($('#add').value);
      if (!$('#add').value && this.ranges.length) return; // an empty field means every key only at the start
      $('#add').value = '';
      this.onchange([...this.ranges.filter((one) => !same(one, range)), range]);
    });
    $('#add').addEventListener('keydown', (event) => {
      if (event.key === 'Backspace' && !$('#add').value && this.ranges.length) this.onchange(this.ranges.slice(0, -1));
    });
  }

  show(ranges) {
    this.ranges = ranges;
    $('#add').placeholder = ranges.length ? 'and another prefix' : 'Follow a prefix, such as /svc/ (empty: every key)';
    redraw($('#ranges'), ...ranges.map((range) => h('li', {},
      h('span', { class: 'mono' }, label(range)),
      h('button', { type: 'button', 'aria-label': `Stop following ${label(range)}`,
        onclick: () => this.onchange(ranges.filter((one) => one !== range)) }, '×'))));
  }
}
