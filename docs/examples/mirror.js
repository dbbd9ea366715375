// The reference client of etcd-watch-gateway for browsers: an exact mirror of one prefix, by EventSource.
//
//   const mirror = new Mirror('http://127.0.0.1:8080', '/svc/', { onchange: (mirror, changes) => … });
//   mirror.items     Map of identity(item) -> item, exact at mirror.revision, never between two revisions
//   mirror.state     'connecting' (no items yet) | 'live' | 'stale' (exact at mirror.revision, unproven now; see .reason)
//   changes          the puts and deletes since the last call, also over a reset; empty when only the state moved
//
// EventSource sends no headers of yours: for a bearer token, give the option EventSource an implementation that does.

// Keys that are not UTF-8 come as base64, so a key's identity is its text and its encoding.
export const identity = ({ key, key_encoding = 'text' }) => `${key_encoding}:${key}`;

export class Mirror {
  items = new Map(); revision = 0; cursor = '';
  state = 'connecting'; reason = ''; since = new Date(); failures = 0;
  #url; #EventSource; #onchange; #source; #timer; #heard; #heartbeat = 15;
  #next = null; // the state that follows a `reset`, built aside until `synced`
  #pending = []; // the events of a revision whose last one has not come
  #synced = false; #etcdAway = null; // of this stream

  constructor(base, prefix, { onchange = () => {}, EventSource = globalThis.EventSource } = {}) {
    this.#url = new URL('v1/watch', base);
    this.#url.searchParams.set('prefix', prefix);
    this.#EventSource = EventSource;
    this.#onchange = onchange;
    this.#open();
  }

  close() {
    this.#source.close();
    clearTimeout(this.#timer);
  }

  #open() {
    // Its own reconnects send the header Last-Event-ID, which beats the query; a new EventSource can only use the query.
    if (this.cursor) this.#url.searchParams.set('last_event_id', this.cursor);
    const source = (this.#source = new this.#EventSource(this.#url.href));
    for (const type of ['reset', 'put', 'delete', 'synced', 'bookmark', 'status', 'close'])
      source.addEventListener(type, (event) => this.#take(type, JSON.parse(event.data), event.lastEventId));
    // CLOSED (2): it gave up for good. Otherwise it reconnects by itself; what it left unfinished will come again.
    source.onerror = () => (source.readyState === 2 ? this.#reopen('refused') : this.#drop('disconnected'));
    this.#heard = performance.now();
    this.#listen();
  }

  #listen() { // nothing for 3 heartbeats: the connection is dead, whatever it says
    clearTimeout(this.#timer);
    const left = () => this.#heard + 3000 * this.#heartbeat - performance.now();
    this.#timer = setTimeout(() => (left() > 0 ? this.#listen() : this.#reopen('silent')), left());
  }

  #reopen(reason, delay = Math.min(30_000, 2000 * 2 ** this.failures++) * (0.1 + 0.9 * Math.random())) {
    this.close();
    this.#timer = setTimeout(() => this.#open(), delay);
    this.#drop(reason);
  }

  #drop(reason, next = null, etcdAway = null) {
    [this.#next, this.#pending, this.#synced, this.#etcdAway] = [next, [], false, etcdAway];
    this.#tell([], reason);
  }

  #take(type, { more, ...event }, id) {
    this.#heard = performance.now();
    if (id) this.cursor = id; // an event without an id repeats the one before it
    if (type === 'reset') {
      this.#drop(`reset: ${event.reason}`, new Map(), this.#etcdAway);
    } else if (type === 'put' || type === 'delete') {
      if (this.#next) return this.#next.set(identity(event), event);
      this.#pending.push(event);
      if (!more) this.#commit(event.mod_revision);
    } else if (type === 'synced') {
      [this.revision, this.#heartbeat, this.#synced, this.failures] = [event.revision, event.heartbeat, true, 0];
      this.#listen();
      this.#tell(this.#next ? this.#swap() : []);
    } else if (type === 'bookmark' || type === 'status') {
      this.revision = event.revision ?? this.revision;
      this.#etcdAway = event.state === 'stale' ? new Date(event.since ?? this.#etcdAway ?? Date.now()) : null;
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

  #swap() { // what differs is told as changes, deletes first
    const [old, now] = [this.items, this.#next];
    [this.items, this.#next] = [now, null];
    const same = (a, b) => a && ['mod_revision', 'value', 'encoding'].every((field) => a[field] === b[field]);
    const gone = [...old.keys()].filter((id) => !now.has(id)).map((id) => ({ ...old.get(id), type: 'delete' }));
    return gone.concat([...now].filter(([id, item]) => !same(old.get(id), item)).map(([, item]) => item));
  }

  #tell(changes, reason = this.reason) {
    const state = this.#synced && !this.#etcdAway ? 'live' : this.revision ? 'stale' : 'connecting';
    if (state !== this.state) this.since = this.#etcdAway ?? new Date();
    this.state = state;
    this.reason = state === 'live' ? '' : this.#etcdAway ? 'etcd is out of reach' : reason;
    this.#onchange(this, changes);
  }
}
