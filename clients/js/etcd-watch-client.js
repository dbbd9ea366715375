// A mirror of etcd's keys that stays exact, in a browser or in Node. README.md shows how to use it, and
// etcd-watch-client.d.ts describes each member. The rules are those of docs/wire-contract.md, "Rules for a client".

// The members without which an event cannot be applied, with a value of their type. An event that failed half-way would
// corrupt the mirror.
const MEMBERS = {
  reset: { reason: '' }, put: { key: '', mod_revision: 0 }, delete: { key: '', mod_revision: 0 },
  synced: { revision: 0, heartbeat: 0 }, bookmark: { revision: 0, state: '' }, status: { state: '' },
  close: { reason: '', retry_ms: 0 },
};
const FIELDS = ['modRevision', 'value', 'valueBase64', 'createRevision', 'version', 'lease'];
const MEDIA = { ndjson: 'application/x-ndjson', sse: 'text/event-stream' };
const LONGEST_WAIT = 300_000; // ms. The gateway never asks for more
const NEXT_TOKEN = 150_000; // ms after which no other token is hoped for: a Secret reaches a pod's files late
const ANSWER = 10_000; // ms in which a gateway answers: it sends the head of a stream at once

// A key that is not UTF-8 comes as base64. As a string, each of its bytes above 7f is a lone surrogate, which no text
// has: so no two keys are the same string, and the string can be asked for again.
const fromBase64 = (key) => atob(key).replace(/[\x80-\xff]/g, (c) => String.fromCharCode(0xdc00 + c.charCodeAt()));
const percentEncode = (name) => name.split(/([\udc80-\udcff])/u)
  .map((part, i) => (i % 2 ? `%${(part.charCodeAt() & 255).toString(16)}` : encodeURIComponent(part))).join('');

const toEntry = (key, { key: raw, key_encoding, value = null, encoding, ...item }) => ({
  key, ...(key_encoding && { keyBase64: raw }),
  value: encoding ? null : value, ...(encoding && { valueBase64: value }),
  createRevision: item.create_revision, modRevision: item.mod_revision, version: item.version,
  lease: item.lease ?? null,
});

export class Mirror extends EventTarget {
  entries = new Map();
  revision = 0;
  cursor = null;
  ranges = null;
  reason = null;
  problem = null;
  retryAt = null;
  lastHeard = null;
  provenAt = null;
  expires = null;
  instance = null;
  tier = null;

  #url;
  #options;
  #read; // opens a stream, and reads it to its end
  #phase = 'connecting'; // 'open' while a stream is; otherwise it is the state
  #attempt; // the AbortController of the present stream or try
  #timer;
  #since; // when the stream last gave a sign of life, or was asked for, by both clocks
  #closed = new AbortController();
  #heartbeat = 15;
  #failures = 0;
  #bearer; // the token of the present stream
  #retry = 0; // ms that the last stream asked to wait after a disconnect
  #next = null; // the state after a `reset`, built aside until `synced`
  #reset; // the reason of that reset
  #pending = []; // the events of a revision whose last event has not come: [key, entry or null]
  #synced = false;
  #doubt = null; // why the gateway itself reports this stream as stale
  #told;

  constructor(url, ranges, options = {}) {
    super();
    const { fetch, EventSource } = globalThis;
    this.#options = { fetch, EventSource, format: 'ndjson', ...options };
    this.#read = options.transport === 'eventsource' || !this.#options.fetch ? this.#listen : this.#fetch;
    if (this.#read === this.#listen && (options.token || !this.#options.EventSource))
      throw new TypeError('an EventSource has no token, and Node has no EventSource; use another transport');
    const query = [ranges].flat().flatMap((range) => Object.entries(range.at ? { prefix: range } : range));
    const { keysOnly, mode } = options;
    query.push(...Object.entries({ ...(keysOnly && { keys_only: '1' }), ...(mode && { mode }), ...options.query }));
    const base = new URL(url, globalThis.location?.href);
    if (!/^https?:$/.test(base.protocol)) throw new TypeError(`${url} is not the URL of a gateway`);
    const path = base.pathname.replace(/\/*$/, '/v1/watch'); // a proxy may serve the gateway under a path
    this.#url = `${base.origin}${path}?${query.map(([name, value]) => `${name}=${percentEncode(`${value}`)}`).join('&')}`;
    // Not at once: a whole office may come back at the same moment.
    const back = () => setTimeout(() => this.#phase === 'disconnected' && this.reconnect(), 1000 * Math.random());
    globalThis.addEventListener?.('online', back, this.#closed);
    // A page from the back/forward cache has its old state, and nobody feeds it any more.
    const shown = ({ persisted }) => persisted && this.#phase !== 'failed' && this.reconnect();
    globalThis.addEventListener?.('pageshow', shown, this.#closed);
    this.#open();
  }

  get state() {
    if (this.#phase !== 'open') return this.#phase;
    return this.#doubt || this.#silent ? 'stale' : this.#synced ? 'live' : 'syncing';
  }

  synced() {
    return new Promise((resolve, reject) => {
      const look = () => {
        if (this.state === 'live') resolve();
        else if (/failed|closed/.test(this.state)) reject(Object.assign(new Error(this.reason), { problem: this.problem }));
        else return;
        this.removeEventListener('state', look);
      };
      this.addEventListener('state', look);
      look();
    });
  }

  close() {
    this.#closed.abort();
    this.#stop('closed');
    this.#tell();
  }

  reconnect() {
    if (this.#phase === 'closed') return;
    this.#failures = 0;
    this.reason ??= 'reconnecting';
    this.#stop(this.#phase === 'failed' ? 'connecting' : 'disconnected');
    this.#open();
  }

  // --- one stream after the other -----------------------------------------------------------------------------------

  #open() {
    const { signal } = (this.#attempt = new AbortController());
    const cursor = this.cursor ? `&last_event_id=${encodeURIComponent(this.cursor)}` : '';
    this.retryAt = null;
    this.#since = [Date.now(), performance.now()];
    this.#timer = setInterval(() => this.#silent && this.#end({ reason: 'silent' }), 1000);
    this.#read(this.#url + cursor, signal).catch((why) => why).then((why) => signal.aborted || this.#end(why));
    this.#tell(this.reason);
  }

  // The stream has ended, or the try has failed: drop what is unfinished. It comes again, complete.
  #end({ reason, message, cause, wait, problem = null, final } = {}) {
    const { token } = this.#options;
    if (problem?.status === 401 && token?.call && Date.now() - this.provenAt < NEXT_TOKEN) final = false;
    const why = cause?.message || cause?.code || message; // Node names the cause in an error of its own
    reason ??= (this.#phase === 'open' ? 'disconnected' : 'no answer') + (why ? `: ${why}` : '');
    const backoff = Math.min(30_000, 1000 * 2 ** this.#failures++) * (0.1 + 0.9 * Math.random());
    const delay = Math.min(LONGEST_WAIT, (wait > 0 ? wait : this.#retry) + backoff);
    this.#stop(final ? 'failed' : 'disconnected');
    this.problem = problem;
    if (!final) {
      this.retryAt = Date.now() + delay;
      this.#timer = setTimeout(() => this.#open(), delay);
    }
    this.#tell(reason);
    if (final) this.#say('failed', problem);
  }

  #stop(phase) {
    clearTimeout(this.#timer);
    this.#attempt.abort();
    [this.#phase, this.#next, this.#pending, this.#synced, this.#doubt] = [phase, null, [], false, null];
    this.retryAt = null;
  }

  async #fetch(url, signal, again) {
    const { fetch, token, format } = this.#options;
    const bearer = (this.#bearer = (token?.call ? await token() : token)?.trim());
    // The browser's own error would show the token.
    if (/[^!-~]/.test(bearer ?? '')) throw { reason: 'the token is not one that a header can have', final: true };
    const headers = { Accept: MEDIA[format], ...(bearer && { Authorization: `Bearer ${bearer}` }) };
    // Without `no-store`, Firefox lets a second stream of the same URL wait 20 s for the first one. A redirect is not
    // followed: mostly it leads to a page to log in, and the token is for the gateway.
    const answer = await fetch(`${url}&format=${format}`, { headers, signal, cache: 'no-store', redirect: 'manual' });
    const kind = answer.headers.get('content-type') ?? 'without a content type';
    if (answer.status !== 200 || !kind.startsWith(MEDIA[format])) {
      // The token may have ended a moment ago: a function is asked for the present one.
      if (answer.status === 401 && token?.call && !again) return this.#fetch(url, signal, true);
      throw await this.#refusal(answer, kind);
    }
    this.#hear();
    this.#opened(answer.headers);
    const [reader, decoder] = [answer.body.getReader(), new TextDecoder('utf-8', { fatal: true })];
    for (let rest = '', data; ;) {
      const { done, value } = await reader.read();
      if (done || signal.aborted) return;
      this.#hear();
      const text = decoder.decode(value, { stream: true });
      rest += text;
      if (!text.includes('\n')) continue; // do not split a long line again with each of its chunks
      const lines = rest.split('\n');
      rest = lines.pop();
      for (const line of lines) {
        // In SSE, `id` is always the last line of its block.
        const [, name, field] = format === 'sse' ? /^(\w*):? ?(.*)/s.exec(line) : [, '', line];
        if (name === 'data') data = [field];
        else if (name === 'id') data?.push(field.trim());
        else if (name === 'retry') this.#retry = +field || 0;
        else if (format !== 'sse') field.trim() && this.#take(field);
        else if (!line.trim() && data) data = this.#take(...data);
        if (signal.aborted) return;
      }
    }
  }

  async #refusal(answer, kind) {
    const { status, headers } = answer;
    const wait = headers.get('retry-after') * 1000 || 0;
    let said;
    if (kind.startsWith('application/problem+json')) {
      said = await answer.text();
      try {
        const problem = JSON.parse(said);
        // A 501 after a success may pass: another member of etcd, or another gateway, can do it again.
        const final = status === 501 ? !this.provenAt : status < 500 && status !== 408 && status !== 429;
        if (problem.code) return { reason: `HTTP ${status} ${problem.code}: ${problem.detail}`, wait, problem, final };
      } catch { /* a problem of somebody else */ }
    } else said = new TextDecoder().decode((await answer.body?.getReader().read())?.value); // its end may never come
    const to = headers.has('location') ? ` to ${headers.get('location')}` : '';
    said = said.replace(/\s+/g, ' ').slice(0, 200);
    return { reason: `HTTP ${status || 'redirect'}${to}, ${kind}, not the gateway's answer: ${said}`, wait };
  }

  // The token ends soon: before that, and not with all others at once, continue with another one.
  #renew() {
    const { token } = this.#options;
    const { signal } = this.#attempt;
    if (!token?.call) return;
    const timer = setTimeout(async () => {
      const fresh = await Promise.resolve().then(token).catch(() => null);
      if (signal.aborted) return;
      if (!fresh || fresh.trim() === this.#bearer) return this.#renew();
      this.reason = 'the token is renewed';
      this.reconnect();
    }, 1000 + 19_000 * Math.random());
    signal.addEventListener('abort', () => clearTimeout(timer));
  }

  #listen(url, signal) {
    return new Promise((resolve, reject) => {
      const source = new this.#options.EventSource(url);
      signal.addEventListener('abort', () => source.close());
      const hear = (take) => (event) => {
        if (signal.aborted) return; // some implementations still deliver what they have read
        try {
          this.#hear();
          take(event);
        } catch (why) { reject(why); }
      };
      source.onopen = hear(() => this.#opened());
      // CLOSED (2): the answer is not a stream. An EventSource does not say what it is: fetch() does.
      source.onerror = () => (source.readyState === 2 ? resolve(this.#fetch(url, signal)) : reject({}));
      for (const type in MEMBERS)
        source.addEventListener(type, hear(({ data, lastEventId }) => this.#take(data, lastEventId)));
    });
  }

  #opened(headers) {
    this.#phase = 'open';
    [this.problem, this.expires] = [null, null];
    for (const name of ['instance', 'tier']) this[name] = headers?.get(`x-gateway-${name}`) ?? null;
    this.#tell(this.reason);
  }

  #hear() {
    // After a long silence, what comes may be as old: the machine may have slept.
    if (this.#silent) throw { reason: 'silent' };
    this.#since = [Date.now(), performance.now()];
    this.#prove(this.#since[0]);
  }

  // A shared worker speaks while its gateway is silent. What the worker itself has heard is in its lines.
  #prove(heard) {
    if (this.#options.relayed) return;
    this.lastHeard = heard;
    if (this.#synced && !this.#doubt) this.provenAt = heard;
  }

  // Two clocks: one may stand still while the machine sleeps, the other may be set back.
  get #silent() {
    const since = Math.max(Date.now() - this.#since[0], performance.now() - this.#since[1]);
    return since > Math.min(3000 * this.#heartbeat, this.#phase === 'open' ? Infinity : ANSWER);
  }

  // --- events -------------------------------------------------------------------------------------------------------

  #take(text, id) {
    let [event, key] = [];
    try {
      event = JSON.parse(text);
      const needed = Object.entries({ type: '', ...MEMBERS[event.type] });
      if (!needed.every(([name, like]) => typeof event[name] === typeof like)) throw event;
      key = event.key_encoding ? fromBase64(event.key) : event.key;
    } catch {
      throw { reason: `not an event of the gateway: ${text.slice(0, 200)}` };
    }
    const { type, reason, revision, cursor = id } = event;
    if (this.#options.relayed && event.heard) [this.lastHeard, this.provenAt] = [event.heard, event.proven];
    if (cursor) this.cursor = cursor; // for an event without an id, EventSource repeats the previous id
    if (type === 'close') throw { reason: event.detail ? `${reason}: ${event.detail}` : reason, wait: event.retry_ms };
    if (type === 'put' || type === 'delete') {
      const entry = type === 'put' ? toEntry(key, event) : null;
      if (!this.#next) {
        this.#pending.push([key, entry]);
        if (!event.more) this.#commit(event.mod_revision, this.#pending.splice(0));
      } else if (entry) this.#next.set(key, entry);
      else this.#next.delete(key);
    } else if (type === 'reset') {
      [this.#next, this.#reset, this.#pending, this.#synced] = [new Map(), reason, [], false];
      this.ranges = event.ranges ?? null;
      this.#tell(`reset: ${reason}`);
      this.#say('reset', { reason, ranges: this.ranges });
    } else if (type === 'synced') {
      [this.#synced, this.#failures, this.#heartbeat] = [true, 0, event.heartbeat || this.#heartbeat];
      this.#swap(revision);
    } else if (type === 'bookmark') {
      // `stale` without a `status` before: the cause is this stream, which is behind, and not etcd.
      this.#doubt = event.state === 'stale' ? this.#doubt ?? 'this client is behind' : null;
      this.revision = revision;
      this.#tell(this.reason);
    } else if (type === 'status') {
      if (event.expires && event.expires !== this.expires) this.#renew();
      this.expires = event.expires ?? this.expires;
      // `detail` and `retry_at` are those of a shared worker, which has the connection.
      this.retryAt = event.retry_at ?? null;
      const why = event.detail ?? 'etcd is out of reach, or this client is behind';
      this.#doubt = event.state === 'stale' ? why : null;
      const since = Date.parse(event.since);
      if (this.#doubt && since && (this.provenAt || this.#synced))
        this.provenAt = Math.min(this.provenAt ?? since, since);
      this.#tell(this.reason);
    }
  }

  // Replaces the state with the new one. The differences are reported as changes, deletes first.
  #swap(revision) {
    const [next, updates] = [this.#next, []];
    this.#next = null;
    if (next) {
      for (const key of this.entries.keys()) if (!next.has(key)) updates.push([key, null]);
      for (const [key, entry] of next) {
        const old = this.entries.get(key);
        if (!old || FIELDS.some((field) => old[field] !== entry[field])) updates.push([key, entry]);
      }
    }
    this.#commit(revision, updates, next ? { reset: this.#reset } : {});
  }

  #commit(revision, updates, more) {
    const { decode } = this.#options;
    const changes = updates.map(([key, entry]) => {
      const previous = this.entries.get(key);
      if (!entry) {
        this.entries.delete(key);
        return { type: 'delete', key, previous };
      }
      if (decode) {
        try { entry.decoded = decode(entry.value, entry); } catch (error) { entry.decodeError = error; }
      }
      this.entries.set(key, entry);
      return { type: 'put', key, entry, previous };
    });
    this.revision = revision;
    this.#prove(this.lastHeard); // before anybody is told
    if (changes.length) this.#say('changes', { revision, changes, ...more });
    this.#tell(this.reason);
  }

  #tell(reason) {
    const { state } = this;
    if (state === 'closed') reason = state;
    this.reason = state === 'live' ? null : this.#doubt ?? reason;
    if (state === 'live') this.#prove(this.lastHeard);
    const now = [state, this.reason, this.revision, this.retryAt].join();
    if (now !== this.#told) {
      this.#told = now;
      this.#say('state', { state, reason: this.reason });
    }
  }

  #say(type, detail) { // not a CustomEvent: Node 18 has none
    this.dispatchEvent(Object.assign(new Event(type), { detail }));
  }
}
