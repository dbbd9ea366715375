// A mirror of etcd's keys that stays exact, in a browser or in Node. README.md shows how to use it, and
// etcd-watch-client.d.ts describes each member. The rules are those of docs/wire-contract.md, "Rules for a client".
//
// This file is what every page loads. What only some pages need is in modules of their own, which are loaded when an
// option asks for them: tokens.js, and event-source.js. Each makes a function like fetch() from another one, and the
// mirror knows only such a function, which answers with a stream of NDJSON. shared.js is built in the same way.

// The members without which an event cannot be applied, with a value of their type. An event that failed half-way would
// corrupt the mirror.
const CHANGE = { key: '', mod_revision: 0 };
const MEMBERS = {
  reset: { reason: '' }, put: CHANGE, delete: CHANGE, synced: { revision: 0, heartbeat: 0 },
  bookmark: { revision: 0, state: '' }, status: { state: '' }, close: { reason: '', retry_ms: 0 },
};
const NDJSON = 'application/x-ndjson';
const LONGEST_WAIT = 300_000; // ms. The gateway never asks for more
const ANSWER = 10_000; // ms in which a gateway answers: it sends the head of a stream at once

// A key that is not UTF-8 comes as base64. As a string, each of its bytes above 7f is a lone surrogate, which no text
// has: so no two keys are the same string, and the string can be asked for again.
const fromBase64 = (key) => atob(key).replace(/[\x80-\xff]/g, (c) => String.fromCharCode(0xdc00 + c.charCodeAt()));
const percentEncode = (name) => `${name}`.replace(/[^\udc80-\udcff]+/gu, encodeURIComponent)
  .replace(/[\udc80-\udcff]/g, (byte) => `%${(byte.charCodeAt() & 255).toString(16)}`);

function addressOf(url, ranges, { keysOnly, mode, query }) {
  const { protocol, origin, pathname } = new URL(url, globalThis.location?.href);
  if (!/^https?:$/.test(protocol)) throw new TypeError(`${url} is not the URL of a gateway`);
  const named = [ranges].flat().map((range) => (range.at ? { prefix: range } : range));
  const parameters = [...named, { ...(keysOnly && { keys_only: 1 }), ...(mode && { mode }), ...query, format: 'ndjson' }]
    .flatMap(Object.entries).map((pair) => pair.map(percentEncode).join('='));
  return `${origin}${pathname.replace(/\/*$/, '/v1/watch')}?${parameters.join('&')}`; // a proxy may serve it under a path
}

const toEntry = (key, { key: raw, key_encoding, value = null, encoding, ...item }) => ({
  key, ...(key_encoding && { keyBase64: raw }),
  value: encoding ? null : value, ...(encoding && { valueBase64: value }),
  createRevision: item.create_revision, modRevision: item.mod_revision, version: item.version,
  lease: item.lease ?? null,
});

// The event of a line, and its key as a string.
function parse(line) {
  try {
    const event = JSON.parse(line);
    const needed = Object.entries({ type: '', ...MEMBERS[event.type] });
    if (needed.every(([name, like]) => typeof event[name] === typeof like))
      return [event, event.key_encoding ? fromBase64(event.key) : event.key];
  } catch { /* not JSON, or not base64 */ }
  throw { reason: `not an event of the gateway: ${line.slice(0, 200)}` };
}

// Reads a body piece by piece, until `take` has enough.
async function read(body, fatal, take) {
  if (!body) return;
  const [reader, decoder] = [body.getReader(), new TextDecoder('utf-8', { fatal })];
  for (;;) {
    const { value } = await reader.read();
    if (!value || take(decoder.decode(value, { stream: true }))) return;
  }
}

// Why an answer is not a stream.
async function refusal({ status, headers, body, temporary }, kind, provenAt) {
  const isProblem = kind.startsWith('application/problem+json');
  let said = '';
  // Of another answer one piece is enough: its end may never come.
  await read(body, false, (text) => {
    said += text;
    return !isProblem;
  });
  const wait = headers.get('retry-after') * 1000;
  try {
    const problem = JSON.parse(said);
    // A 501 after a success may pass: another member of etcd, or another gateway, can do it again.
    const final = status === 501 ? !provenAt : status < 500 && status !== 408 && status !== 429 && !temporary;
    if (isProblem && problem.code) return { reason: `HTTP ${status} ${problem.code}: ${problem.detail}`, wait, problem, final };
  } catch { /* an answer of somebody else */ }
  const to = headers.get('location');
  said = said.replace(/\s+/g, ' ').slice(0, 200);
  return { reason: `HTTP ${status || 'redirect'}${to ? ` to ${to}` : ''}, ${kind}, not the gateway's answer: ${said}`, wait };
}

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

  constructor(url, ranges, options = {}) {
    super();
    follow(this, addressOf(url, ranges, options), options); // adds `state`, `close` and `reconnect`
  }

  async synced() {
    while (this.state !== 'live') {
      if (/failed|closed/.test(this.state)) throw Object.assign(new Error(this.reason), { problem: this.problem });
      await new Promise((changed) => this.addEventListener('state', changed, { once: true }));
    }
  }
}

function follow(mirror, address, options) {
  const closed = new AbortController();
  let chosen = null; // what asks the gateway: a promise of a function like fetch()
  let phase = 'connecting'; // the state while no stream is open
  let isOpen;
  let attempt; // the AbortController of the present stream or try
  let timer;
  let since; // when the stream last gave a sign of life, or was asked for, by both clocks
  let heartbeat = 15;
  let failures = 0;
  let aside; // the state after a `reset`, or the events of a revision whose last event has not come: key to entry
  let reset = null; // the reason of that reset
  let synced;
  let doubt; // why the gateway itself reports this stream as stale
  let told;

  // --- what the mirror says -----------------------------------------------------------------------------------------

  const now = () => [Date.now(), performance.now()];

  // Two clocks: one may stand still while the machine sleeps, the other may be set back.
  const isSilent = () => {
    const silence = Math.max(...now().map((time, at) => time - since[at]));
    return silence > 3000 * heartbeat || (!isOpen && silence > ANSWER);
  };

  Object.defineProperty(mirror, 'state', {
    get: () => (!isOpen ? phase : doubt || isSilent() ? 'stale' : synced ? 'live' : 'syncing'),
  });

  const say = (type, detail) => mirror.dispatchEvent(new CustomEvent(type, { detail }));

  const prove = () => {
    if (synced && !doubt) mirror.provenAt = mirror.lastHeard;
  };

  const tell = (why = mirror.reason) => {
    const { state } = mirror;
    prove();
    const reason = (mirror.reason = state === 'live' ? null : doubt ?? why);
    const news = [state, reason, mirror.revision, mirror.retryAt, mirror.expires].join();
    if (news === told) return;
    told = news;
    say('state', { state, reason });
  };

  // --- one stream after the other -----------------------------------------------------------------------------------

  // Drops what is unfinished: it comes again, complete.
  const stop = (next) => {
    clearTimeout(timer);
    attempt?.abort();
    phase = next;
    isOpen = synced = doubt = reset = mirror.retryAt = mirror.expires = null;
    aside = new Map();
  };

  const open = (next = phase) => {
    stop(next);
    const { signal } = (attempt = new AbortController());
    since = now();
    timer = setInterval(() => isSilent() && end({ reason: 'silent' }), 1000);
    stream(signal).catch((why) => why).then((why) => signal.aborted || end(why));
    tell();
  };

  // The stream has ended, or the try has failed.
  const end = ({ reason, message, cause, wait, problem = null, final } = {}) => {
    const why = cause?.message || cause?.code || message; // Node names the cause in an error of its own
    reason ??= (isOpen ? 'disconnected' : 'no answer') + (why ? `: ${why}` : '');
    stop(final ? 'failed' : 'disconnected');
    mirror.problem = problem;
    if (!final) {
      const backoff = Math.min(30_000, 1000 * 2 ** failures++) * (0.1 + 0.9 * Math.random());
      const delay = Math.min(LONGEST_WAIT, (wait > 0 ? wait : 0) + backoff);
      mirror.retryAt = Date.now() + delay;
      timer = setTimeout(() => open(), delay);
    }
    tell(reason);
    if (final) say('failed', problem);
  };

  mirror.reconnect = () => {
    if (phase === 'closed') return;
    failures = 0;
    mirror.reason ??= 'reconnecting';
    open(phase === 'failed' ? 'connecting' : 'disconnected');
  };

  mirror.close = () => {
    closed.abort();
    stop('closed');
    tell('closed');
  };

  // A network that is back is not used at once: a whole office may come back at the same moment. A page from the
  // back/forward cache has its old state, and nobody feeds it any more.
  const wake = ({ type, persisted }) => {
    if (type === 'online') setTimeout(() => mirror.state === 'disconnected' && mirror.reconnect(), 1000 * Math.random());
    else if (persisted && phase !== 'failed') mirror.reconnect();
  };
  for (const type of ['online', 'pageshow']) globalThis.addEventListener?.(type, wake, closed);

  // --- one stream ---------------------------------------------------------------------------------------------------

  const withOptions = async ({ fetch = globalThis.fetch, transport, format, token }) => {
    if (transport === 'eventsource' || format === 'sse') fetch = (await import('./event-source.js')).byEvents(fetch, options);
    return token ? (await import('./tokens.js')).withToken(fetch, token, mirror) : fetch;
  };

  // A file that could not be loaded is asked for again at the next try. (Firefox does so only in another page.)
  const choose = () => (chosen ??= withOptions(options).catch((why) => {
    chosen = null;
    throw why;
  }));

  const hear = () => {
    // After a long silence, what comes may be as old: the machine may have slept.
    if (isSilent()) throw { reason: 'silent' };
    since = now();
    [mirror.lastHeard] = since;
    prove();
  };

  const stream = async (signal) => {
    const cursor = mirror.cursor ? `&last_event_id=${percentEncode(mirror.cursor)}` : '';
    const ask = await choose();
    // Without `no-store`, Firefox lets a second stream of the same URL wait 20 s for the first one. A redirect is not
    // followed: mostly it leads to a page to log in, and a token is for the gateway.
    const answer = await ask(address + cursor, { headers: { Accept: NDJSON }, signal, cache: 'no-store', redirect: 'manual' });
    signal.throwIfAborted();
    const kind = answer.headers.get('content-type') ?? 'without a content type';
    if (answer.status !== 200 || !kind.startsWith(NDJSON)) throw await refusal(answer, kind, mirror.provenAt);
    hear();
    isOpen = true;
    mirror.problem = null;
    for (const name of ['instance', 'tier']) mirror[name] = answer.headers.get(`x-gateway-${name}`);
    tell();
    let line = '';
    await read(answer.body, true, (text) => {
      if (signal.aborted) return true;
      hear();
      const [rest, ...lines] = text.split('\n');
      line += rest;
      for (const next of lines) {
        if (line.trim()) take(line);
        if (signal.aborted) return true;
        line = next;
      }
    });
  };

  // --- events -------------------------------------------------------------------------------------------------------

  const take = (line) => {
    const [event, key] = parse(line);
    mirror.cursor = event.cursor ?? mirror.cursor;
    if (on[event.type]) on[event.type](event, key);
    else say(event.type, event);
  };

  const change = (event, key) => {
    aside.set(key, event.type === 'put' ? toEntry(key, event) : undefined);
    if (reset === null && !event.more) commit(event.mod_revision);
  };

  const on = {
    put: change,
    delete: change,
    reset({ reason, ranges = null }) {
      aside = new Map();
      reset = reason;
      synced = false;
      mirror.ranges = ranges;
      tell(`reset: ${reason}`);
      say('reset', { reason, ranges });
    },
    synced(event) {
      heartbeat = event.heartbeat || heartbeat;
      failures = 0;
      synced = true;
      commit(event.revision);
    },
    bookmark({ state, revision }) {
      // `stale` without a `status` before: the cause is this stream, which is behind, and not etcd.
      doubt = state === 'stale' ? doubt ?? 'this client is behind' : null;
      mirror.revision = revision;
      tell();
    },
    // `detail` and `retry_at` are those of a shared worker, which has the connection.
    status({ state, since, expires, detail, retry_at = null }) {
      mirror.expires = expires ?? mirror.expires;
      mirror.retryAt = retry_at;
      doubt = state === 'stale' ? detail || 'etcd is out of reach, or this client is behind' : null;
      const proven = Date.parse(since);
      if (doubt && proven && (mirror.provenAt || synced)) mirror.provenAt = Math.min(mirror.provenAt ?? proven, proven);
      tell();
    },
    close({ reason, detail, retry_ms }) {
      throw { reason: detail ? `${reason}: ${detail}` : reason, wait: retry_ms };
    },
  };

  // Applies what is aside. The differences of a new state are reported as changes, too, deletes first.
  const commit = (revision) => {
    const { entries } = mirror;
    const { decode } = options;
    const gone = reset === null ? [] : [...entries.keys()].filter((key) => !aside.has(key)).map((key) => [key]);
    const changes = [];
    for (const [key, entry] of [...gone, ...aside]) {
      const previous = entries.get(key);
      if (entry && previous && Object.keys(entry).every((name) => entry[name] === previous[name])) continue;
      if (entry && decode) {
        try { entry.decoded = decode(entry.value, entry); } catch (error) { entry.decodeError = error; }
      }
      if (entry) entries.set(key, entry);
      else entries.delete(key);
      changes.push({ type: entry ? 'put' : 'delete', key, entry, previous });
    }
    mirror.revision = revision;
    prove(); // before anybody is told
    if (changes.length) say('changes', { revision, changes, ...(reset !== null && { reset }) });
    aside = new Map();
    reset = null;
    tell();
  };

  open();
}
