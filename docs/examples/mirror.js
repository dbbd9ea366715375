// The reference client of etcd-watch-gateway for browsers: an exact mirror of a prefix, or of several
// ranges at once, by EventSource. This file is an ES module: name it mirror.mjs if there is no package.json with "type": "module".
//
//   const mirror = new Mirror('http://127.0.0.1:8080', '/svc/', { onchange: (mirror, changes) => … });
//   mirror.items     Map of identity(item) -> item, exact at mirror.revision, never between two revisions
//   mirror.state     'connecting' (no items yet) | 'live' | 'stale' (exact at mirror.revision, unproven now)
//   mirror.reason    why the mirror is not live
//   changes          the puts and deletes since the last call, also across a reset; empty if only the state changed
//   mirror.close()   stop following
//
// Several ranges, on one stream and in one order: new Mirror(base, ['/svc/', '/config/'], { keys: ['/leader'] }).
//
// EventSource does not report a status. A refusal, final or not, has the reason 'refused', and the mirror retries.
// fetch() of the same range at v1/kv reports more; the gateway's page does that. EventSource sends no custom headers.
// For a bearer token, and in Node, pass an implementation that does as the option EventSource, such as the npm package
// eventsource.

// Keys that are not UTF-8 come as base64, so a key's identity is its text and its encoding.
export const identity = ({ key, key_encoding = 'text' }) => `${key_encoding}:${key}`;

// The members without which an event cannot be applied. An event that failed half-way would corrupt the mirror.
const MEMBERS = {
  reset: { reason: 'string' }, put: { key: 'string', mod_revision: 'number' },
  delete: { key: 'string', mod_revision: 'number' }, synced: { revision: 'number', heartbeat: 'number' },
  bookmark: { revision: 'number', state: 'string' }, status: { state: 'string' },
  close: { reason: 'string', retry_ms: 'number' },
};
const parse = (type, data) => {
  try {
    const event = JSON.parse(data);
    if (Object.entries(MEMBERS[type]).every(([name, kind]) => typeof event[name] === kind)) return event;
  } catch { /* not JSON, or null */ }
  return null;
};

const LONGEST_WAIT = 300_000; // ms. The gateway never asks for more, and setTimeout treats more than 2^31 as 0

export class Mirror {
  items = new Map(); revision = 0; cursor = '';
  reason = ''; since = new Date(); failures = 0;
  #url; #EventSource; #onchange; #source = null; #timer; #heartbeat = 15;
  #state = 'connecting'; #heard; // when the stream last gave a sign of life, by both clocks
  #next = null; // the state after a `reset`, built aside until `synced`
  #pending = []; // the events of a revision whose last event has not come
  #synced = false; #why = ''; // #why: why the last stream ended, or the last reset
  #doubt = null; // why the gateway itself reports this stream as stale: { reason, since }

  constructor(base, prefix, { keys = [], onchange = () => {}, EventSource = globalThis.EventSource } = {}) {
    if (typeof EventSource !== 'function')
      throw new TypeError('EventSource is missing, as in Node. Pass one: import { EventSource } from "eventsource"; '
        + 'new Mirror(base, prefix, { EventSource })');
    const names = [prefix, keys].flat();
    if (!names.length || names.some((name) => typeof name !== 'string'))
      throw new TypeError(`${names} is not a prefix and keys; pass text, or a list. The prefix "" means all keys`);
    try { this.#url = new URL(base, globalThis.location?.href); } catch { /* not a URL */ }
    if (!/^https?:$/.test(this.#url?.protocol))
      throw new TypeError(`${base} is not the URL of a gateway; write http://HOST:PORT`);
    this.#url.pathname = this.#url.pathname.replace(/\/*$/, '/v1/watch'); // a proxy may serve the gateway under a path
    [this.#url.search, this.#url.hash] = ['', ''];
    for (const name of [prefix].flat()) this.#url.searchParams.append('prefix', name);
    for (const name of [keys].flat()) this.#url.searchParams.append('key', name);
    this.#EventSource = EventSource;
    this.#onchange = onchange;
    this.#open();
  }

  get state() { return this.#state === 'live' && this.#silent ? 'stale' : this.#state; }

  // Two clocks: one may stand still while the machine sleeps, the other may be set back.
  get #silent() {
    return Math.max(Date.now() - this.#heard[0], performance.now() - this.#heard[1]) > 3000 * this.#heartbeat;
  }

  close() { // onchange is not called: the caller knows
    this.#stop();
    this.#forget('closed');
  }

  #stop() {
    this.#source?.close();
    this.#source = null;
    clearTimeout(this.#timer);
  }

  #open() {
    // A reconnect of the EventSource sends the header Last-Event-ID, which overrides the query. A new EventSource can
    // only use the query.
    if (this.cursor) this.#url.searchParams.set('last_event_id', this.cursor);
    const source = (this.#source = new this.#EventSource(this.#url.href));
    for (const type of Object.keys(MEMBERS))
      source.addEventListener(type, ({ data, lastEventId }) => {
        if (source !== this.#source) return; // some implementations still deliver what they have read
        const event = parse(type, data);
        if (event) this.#take(type, event, lastEventId);
        else this.#reopen(`not an event of the gateway: ${type} ${String(data).slice(0, 200)}`);
      });
    source.onerror = () => {
      if (source !== this.#source) return;
      // CLOSED (2): EventSource has given up for good. Otherwise it reconnects by itself; unfinished events come again.
      if (source.readyState === 2) this.#reopen('refused'); else this.#drop('disconnected');
    };
    this.#heard = [Date.now(), performance.now()];
    clearTimeout(this.#timer);
    // Nothing for 3 heartbeats: the connection is dead, whatever its readyState.
    this.#timer = setInterval(() => this.#silent && this.#reopen('silent'), 1000);
  }

  #reopen(reason, delay = 0) {
    if (!(delay > 0)) delay = Math.min(30_000, 2000 * 2 ** this.failures++) * (0.1 + 0.9 * Math.random());
    this.#stop();
    this.#timer = setTimeout(() => this.#open(), Math.min(delay, LONGEST_WAIT));
    this.#drop(reason);
  }

  #forget(why, next = null, doubt = null) { // discard what a stream leaves unfinished: it comes again, complete
    [this.#next, this.#pending, this.#synced, this.#doubt] = [next, [], false, doubt];
    this.#setState(why);
  }

  #drop(why, next, doubt) {
    this.#forget(why, next, doubt);
    this.#onchange(this, []);
  }

  #take(type, { more, ...event }, id) {
    if (this.#silent) return this.#reopen('silent'); // what comes may be as old: the machine may have slept
    this.#heard = [Date.now(), performance.now()];
    if (id) this.cursor = id; // for an event without an id, EventSource repeats the previous id
    if (type === 'reset') {
      this.#drop(`reset: ${event.reason}`, new Map(), this.#doubt);
    } else if (type === 'put' || type === 'delete') {
      if (this.#next) return this.#next.set(identity(event), event);
      this.#pending.push(event);
      if (!more) this.#commit(event.mod_revision);
    } else if (type === 'synced') {
      [this.revision, this.#heartbeat, this.#synced, this.failures] = [event.revision, event.heartbeat, true, 0];
      this.#tell(this.#next ? this.#swap() : []);
    } else if (type === 'bookmark') {
      this.revision = event.revision;
      // `stale` without a `status` before: the cause is this stream, which is behind, and not etcd.
      const behind = { reason: 'this client is behind', since: new Date() };
      this.#doubt = event.state === 'stale' ? this.#doubt ?? behind : null;
      this.#tell([]);
    } else if (type === 'status') {
      const away = { reason: 'etcd is out of reach, or this client is behind', since: new Date(event.since ?? Date.now()) };
      this.#doubt = event.state === 'stale' ? away : null;
      this.#tell([]);
    } else this.#reopen(event.reason, event.retry_ms);
  }

  #commit(revision) {
    const changes = this.#pending;
    for (const change of changes) {
      if (change.type === 'put') this.items.set(identity(change), change);
      else this.items.delete(identity(change));
    }
    [this.#pending, this.revision] = [[], revision];
    this.#tell(changes);
  }

  #swap() { // the differences are reported as changes, deletes first
    const [old, now] = [this.items, this.#next];
    [this.items, this.#next] = [now, null];
    const same = (a, b) => a && ['mod_revision', 'value', 'encoding'].every((field) => a[field] === b[field]);
    const gone = [...old.keys()].filter((id) => !now.has(id)).map((id) => ({ ...old.get(id), type: 'delete' }));
    return gone.concat([...now].filter(([id, item]) => !same(old.get(id), item)).map(([, item]) => item));
  }

  #setState(why) {
    const state = this.#synced && !this.#doubt ? 'live' : this.revision ? 'stale' : 'connecting';
    if (state !== this.#state) this.since = this.#doubt?.since ?? new Date();
    this.#state = state;
    this.#why = state === 'live' ? '' : why;
    this.reason = state === 'live' ? '' : this.#doubt?.reason ?? why;
  }

  #tell(changes) {
    this.#setState(this.#why);
    this.#onchange(this, changes);
  }
}
