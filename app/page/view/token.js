// The bearer token: kept in the tab's sessionStorage, so that no other tab has it. A duplicate has it, and a closed tab that
// the browser opens again.

import { duration } from '../model/format.js';
import { $, setText } from './dom.js';

const NAME = 'etcd-watch-gateway.token';
const SOON = 60_000; // ms before the end, from which the button says so

export class Token {
  expires = null; // ms, as /v1/access or the stream says
  #value = '';

  /** `onchange()`: there is another token, or none. */
  constructor(onchange) {
    this.onchange = onchange;
    try { this.#value = sessionStorage.getItem(NAME) ?? ''; } catch { /* the browser keeps nothing here */ }
    $('#token-open').addEventListener('click', () => this.open());
    $('#token').addEventListener('close', () => this.#closed($('#token').returnValue));
    // Enter in the field uses the token. Without this, it would press the first button of the form.
    $('#token-value').addEventListener('keydown', (event) => {
      if (event.key !== 'Enter') return;
      event.preventDefault();
      $('#token').close('use');
    });
    this.tick(Date.now());
  }

  get value() { return this.#value; }

  open() {
    $('#token-value').value = '';
    $('#token').returnValue = '';
    $('#token-forget').hidden = !this.#value;
    setText($('#token-state'), !this.#value ? 'This tab has no token now.'
      : `This tab has a token${this.expires ? ` that ends at ${new Date(this.expires).toLocaleString()}` : ''}.`);
    $('#token').showModal();
    $('#token-value').focus();
  }

  #closed(how) {
    const given = $('#token-value').value.trim().replace(/^Bearer\s+/i, '');
    $('#token-value').value = '';
    if (how === 'forget') this.#set('');
    else if (how === 'use' && given) this.#set(given);
  }

  #set(value) {
    [this.#value, this.expires] = [value, null];
    try {
      if (value) sessionStorage.setItem(NAME, value); else sessionStorage.removeItem(NAME);
    } catch { /* then it lives as long as this page */ }
    this.tick(Date.now());
    this.onchange();
  }

  tick(now) {
    const left = this.expires === null ? Infinity : this.expires - now;
    const said = !this.#value ? 'Token' : left <= 0 ? 'Token has ended' : left < SOON ? `Token ends in ${duration(left)}` : 'Token ✓';
    setText($('#token-open'), said);
    $('#token-open').classList.toggle('warn', Boolean(this.#value) && left < SOON);
  }
}
