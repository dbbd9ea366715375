// The SharedWorker of shared.js: one mirror for all tabs that follow the same ranges with the same token. Each tab has
// a port, and gets the lines that a stream of the gateway would have: the state, then every change.
import { Mirror } from './etcd-watch-client.js';
import './tokens.js'; // a worker lives long, and Firefox never asks again for a file that was refused once

const BEAT = 5000; // ms: each port gets something that often, and when the gateway was last heard
const HEARTBEAT = 15; // seconds, as a gateway says it: a tab leaves the worker after three without a message
const GONE = 60_000; // ms without an answer: the tab was closed without a word, or is frozen
const LINGER = 2000; // ms for which a mirror stays without a port: for a page that is loaded again

const line = (event, cursor) => `${JSON.stringify({ ...event, ...(cursor && { cursor }) })}\n`;

// An entry as the gateway writes it.
const toItem = ({ key, keyBase64, value, valueBase64, createRevision, modRevision, version, lease }) => ({
  ...(keyBase64 ? { key: keyBase64, key_encoding: 'base64' } : { key }),
  ...(valueBase64 === undefined ? value !== null && { value } : { value: valueBase64, encoding: 'base64' }),
  create_revision: createRevision, mod_revision: modRevision, version, ...(lease && { lease }),
});

class Shared {
  ports = new Map(); // port to the time when it last answered
  #reset = { reason: 'initial', ranges: null };
  #told = ''; // the last status
  #revision = 0; // the revision that the ports know

  constructor(url, ranges, options, token, onend) {
    this.mirror = new Mirror(url, ranges, { ...options, token });
    this.mirror.addEventListener('reset', ({ detail }) => { this.#reset = detail; });
    this.mirror.addEventListener('changes', ({ detail }) => this.#send(
      'reset' in detail ? this.#whole() : this.#proof() + this.#changes(detail),
    ));
    this.mirror.addEventListener('state', () => {
      if (this.mirror.reason?.startsWith('revoked')) this.#fail({ problem: null, final: false }); // each tab asks anew
      else this.#tell();
    });
    this.mirror.addEventListener('failed', ({ detail: problem }) => this.#fail({ problem }));
    this.onend = onend;
    this.beat = setInterval(() => this.#beat(), BEAT);
  }

  join(port) {
    clearTimeout(this.lingering);
    if (this.mirror.state === 'disconnected') this.mirror.reconnect();
    this.ports.set(port, Date.now());
    // Always the whole state: a cursor does not say which history it is from, and the tab tells only differences.
    port.postMessage({ lines: (this.mirror.revision ? this.#whole() : this.#proof()) + this.#status() });
  }

  leave(port) {
    if (!this.ports.delete(port) || this.ports.size) return; // a tab may leave twice
    this.lingering = setTimeout(() => this.end(), LINGER);
  }

  #fail(why) {
    for (const port of this.ports.keys()) port.postMessage({ failed: { reason: this.mirror.reason, ...why } });
    this.end(); // who tries again gets another one
  }

  end() {
    clearTimeout(this.lingering); // otherwise it would take the next one out of `all`
    this.ports.clear();
    clearInterval(this.beat);
    this.mirror.close();
    this.onend();
  }

  #send(lines) {
    this.#revision = this.mirror.revision;
    for (const port of this.ports.keys()) port.postMessage({ lines });
  }

  #state() {
    const items = [...this.mirror.entries.values()].map((entry) => line({ type: 'put', ...toItem(entry) }));
    return line({ type: 'reset', ...this.#reset }) + items.join('');
  }

  // The status comes before `synced`: what a tab has is never called live, or stale, while that of the mirror is not.
  #whole() { return this.#state() + this.#status() + this.#synced(); }

  // Which gateway answers, when it was last heard, and when the state was last proven. A tab that counted what it hears
  // from this worker would take a state for current while the gateway says nothing.
  #proof() {
    const { lastHeard, provenAt, instance, tier } = this.mirror;
    return line({ type: 'proof', ...(lastHeard && { lastHeard, instance, tier }), ...(provenAt && { provenAt }) });
  }

  #synced() {
    const { revision, cursor } = this.mirror;
    return this.#proof() + line({ type: 'synced', revision, heartbeat: HEARTBEAT }, cursor);
  }

  #changes({ revision, changes }) {
    const last = changes.length - 1;
    return changes.map(({ type, key, entry, previous }, at) => {
      const item = entry ? toItem(entry) : { ...toItem(previous ?? { key }), mod_revision: revision };
      return line({ type, ...item, ...(at < last && { more: true }) }, at === last && this.mirror.cursor);
    }).join('');
  }

  #status() {
    const { state, reason, provenAt, retryAt, expires, ranges, revision } = this.mirror;
    if (!revision && !reason) return '';
    const event = { type: 'status', state: state === 'live' ? 'live' : 'stale', ranges, ...(expires && { expires }) };
    if (state === 'live') return line(event);
    const since = provenAt && new Date(provenAt).toISOString();
    return line({ ...event, since, detail: reason ?? state, retry_at: retryAt });
  }

  #tell() {
    const { revision, state, cursor } = this.mirror;
    const status = this.#status();
    let lines = status === this.#told ? '' : (this.#told = status);
    // The first state is `synced`, although nothing has changed if it has no keys.
    if (revision && !this.#revision) lines = this.#whole();
    else if (revision !== this.#revision)
      lines = this.#proof() + lines + line({ type: 'bookmark', revision, state: state === 'live' ? state : 'stale' }, cursor);
    else if (lines || !revision) lines = this.#proof() + lines;
    if (lines) this.#send(lines);
  }

  #beat() {
    for (const [port, heard] of this.ports) if (Date.now() - heard > GONE) this.leave(port);
    this.#send(this.#proof());
  }
}

const all = new Map();

export function accept(port) {
  let shared;
  port.onmessage = ({ data: { follow, leave } }) => {
    if (follow) {
      const key = follow;
      try {
        shared = all.get(key) ?? new Shared(...JSON.parse(follow), () => all.delete(key));
      } catch (error) {
        port.postMessage({ failed: { reason: error.message } });
        return;
      }
      all.set(key, shared);
      shared.join(port);
    } else if (leave) shared?.leave(port);
    else if (shared?.ports.has(port)) shared.ports.set(port, Date.now());
  };
}

if ('onconnect' in globalThis) globalThis.onconnect = ({ ports: [port] }) => accept(port);
