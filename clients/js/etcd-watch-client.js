// A mirror of etcd's keys that stays exact, in a browser or in Node. README.md shows how to use it, and
// etcd-watch-client.d.ts describes each member. The rules are those of docs/wire-contract.md, "Rules for a client".
//
// This file is what every page loads. What only some pages need is in modules of their own, which are loaded when an
// option asks for them: tokens.js, and event-source.js. Each makes a function like fetch() from another one, and the
// mirror knows only such a function, which answers with a stream of NDJSON. shared.js is built in the same way.

const NDJSON = 'application/x-ndjson';

// Names for what is written several times: a minifier shortens a name, and keeps each text.
const { entries: pairsOf } = Object;
const scope = globalThis;
const DISCONNECTED = 'disconnected';
const FAILED = 'failed';
const CLOSED = 'closed';
const STALE = 'stale';
const CONNECTING = 'connecting';
const SILENT = { reason: 'silent' };
const BEHIND = 'this client is behind';

// A key that is not UTF-8 comes as base64. As a string, each of its bytes above 7f is a lone surrogate, which no text
// has: so no two keys are the same string, and the string can be asked for again.
const fromBase64 = (key) => atob(key).replace(/[\x80-\xff]/g, (c) => String.fromCharCode(0xdc00 + c.charCodeAt()));
const percentEncode = (name) => `${name}`.replace(/[^\udc80-\udcff]+/gu, encodeURIComponent)
  .replace(/[\udc80-\udcff]/g, (byte) => `%${(byte.charCodeAt() & 255).toString(16)}`);

// What is wrong in a call ends it: ignored, it would follow something else than what was meant.
const demand = (isRight, message) => {
  if (!isRight) throw TypeError(message);
};

function addressOf(url, ranges, query) {
  // In Node there is no page: a relative URL is then not one of HTTP.
  const { protocol, origin, pathname } = new URL(url ?? 'x:', scope.location?.href ?? 'x:/');
  demand(/^http/.test(protocol), `${url} is not the URL of a gateway; write http://HOST:PORT`);
  const given = [ranges].flat();
  const areRanges = given.every((range) => /^("|{"(prefix|key)":")/.test(JSON.stringify(range)));
  demand(given.length && areRanges, 'name a prefix ("" is all keys) or a { key }');
  const parameters = [...given.map((range) => (range.at ? { prefix: range } : range)), query]
    .flatMap(pairsOf).map((pair) => pair.map(percentEncode).join('='));
  return `${origin}${pathname.replace(/\/*$/, '/v1/watch')}?${parameters.join('&')}`; // a proxy may serve it under a path
}

const toEntry = (key, { key: raw, key_encoding, value = null, encoding, ...item }) => ({
  key, ...(key_encoding && { keyBase64: raw }),
  value: encoding ? null : value, ...(encoding && { valueBase64: value }),
  createRevision: item.create_revision, modRevision: item.mod_revision, version: item.version,
  lease: item.lease ?? null,
});

// Reads a body piece by piece, until `take` has enough.
async function read(body, fatal, take) {
  const reader = body?.getReader();
  const decoder = new TextDecoder('utf-8', { fatal });
  for (let piece; (piece = (await reader?.read())?.value) && !take(decoder.decode(piece, { stream: true })););
}

// Why an answer is not a stream.
async function refusal({ status, headers, body, temporary }, kind, provenAt) {
  const isProblem = /problem/.test(kind);
  let said = '';
  // Of another answer one piece is enough: its end may never come.
  await read(body, false, (text) => {
    said += text;
    return !isProblem;
  });
  const wait = headers.get('retry-after') * 1000;
  try {
    const problem = JSON.parse(said);
    if (isProblem && problem.code)
      return {
        reason: `HTTP ${status} ${problem.code}: ${problem.detail}`, wait, problem,
        // A 501 after a success may pass: another member of etcd, or another gateway, can do it again.
        final: status === 501 ? !provenAt : status < 500 && status !== 408 && status !== 429 && !temporary,
      };
  } catch { /* an answer of somebody else */ }
  const to = headers.get('location');
  const where = `HTTP ${status || 'redirect'}${to ? ` to ${to}` : ''}`;
  return { reason: `${where}, ${kind}, not the gateway's answer: ${said.replace(/\s+/g, ' ').slice(0, 200)}`, wait };
}

export class Mirror extends EventTarget {
  entries = new Map();
  revision = 0;
  cursor = null;
  ranges = null;
  reason = null;
  problem = null;
  lastHeard = null;
  provenAt = null;
  instance = null;
  tier = null;

  constructor(url, ranges, options = {}) {
    super();
    follow(this, url, ranges, options); // adds `state`, `expires`, `retryAt`, and the functions
  }
}

function follow(mirror, url, ranges, options) {
  // `EventSource` is for event-source.js.
  const { token, decode, keysOnly, mode, query, transport, format, fetch = scope.fetch, EventSource, ...unknown } = options;
  for (const name in unknown) demand(0, `there is no option ${name}`);
  demand((decode ?? fetch).call && fetch.call, 'decode and fetch are functions');
  const wanted = { ...(keysOnly && { keys_only: 1 }), ...(mode && { mode }), ...query, format: 'ndjson' };
  let address = addressOf(url, ranges, wanted);
  const closed = new AbortController();
  let chosen; // what asks the gateway: a promise of a function like fetch()
  let phase = CONNECTING; // the state while no stream is open
  let isOpen;
  let attempt; // the AbortController of the present stream or try
  let timer;
  let since; // when the stream last gave a sign of life, or was asked for, by both clocks
  let heartbeat = 15;
  let failures = 0;
  let aside; // the state after a `reset`, or the events of a revision whose last event has not come: key to entry
  let reset; // the reason of that reset, as `changes` tells it
  let synced;
  let doubt; // why the gateway itself reports this stream as stale
  let told;

  // --- what the mirror says -----------------------------------------------------------------------------------------

  const now = (later = 0) => [Date.now() + later, performance.now() + later];

  // Silence counts from now, or from `later`.
  const listen = (later) => (since = now(later));

  // Two clocks: one may stand still while the machine sleeps, the other may be set back. A gateway sends the head of a
  // stream at once.
  const isSilent = () => Math.max(...now().map((time, at) => time - since[at])) > (isOpen ? 3000 * heartbeat : 10_000);

  Object.defineProperty(mirror, 'state', {
    // Without a revision there is nothing that could be old.
    get: () => (!isOpen ? phase : mirror.revision && (doubt || isSilent()) ? STALE : synced ? 'live' : 'syncing'),
  });

  const say = (type, detail) => mirror.dispatchEvent(new CustomEvent(type, { detail }));

  const prove = () => {
    if (synced && !doubt) mirror.provenAt = mirror.lastHeard;
  };

  const tell = (why = mirror.reason) => {
    prove();
    const { state } = mirror;
    const reason = (mirror.reason = state === 'live' ? null : doubt || why);
    const news = [state, reason, mirror.revision, mirror.retryAt, mirror.expires].join();
    if (news === told) return;
    told = news;
    say('state', { state, reason });
  };

  // --- one stream after the other -----------------------------------------------------------------------------------

  mirror.synced = async () => {
    while (mirror.state !== 'live') {
      if (phase === FAILED || phase === CLOSED) throw Object.assign(Error(mirror.reason), { problem: mirror.problem });
      await new Promise((changed) => mirror.addEventListener('state', changed, { once: true }));
    }
  };

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
    listen();
    timer = setInterval(() => isSilent() && end(SILENT), 1000);
    stream(signal).catch((why) => why).then((why) => signal.aborted || end(why));
    tell();
  };

  // The stream has ended, or the try has failed.
  const end = ({ reason, message, cause, wait, problem = null, final } = {}) => {
    const why = cause?.message || cause?.code || message; // Node names the cause in an error of its own
    reason ??= (isOpen ? DISCONNECTED : 'no answer') + (why ? `: ${why}` : '');
    stop(final ? FAILED : DISCONNECTED);
    mirror.problem = problem;
    if (!final) {
      const backoff = Math.min(30_000, 1000 * 2 ** failures++) * (0.1 + 0.9 * Math.random());
      const delay = Math.min(300_000, (wait > 0 && wait) + backoff); // the gateway never asks for more
      [mirror.retryAt] = now(delay);
      timer = setTimeout(open, delay);
    }
    tell(reason);
    if (final) say(FAILED, problem);
  };

  mirror.reconnect = () => {
    if (phase === CLOSED) return;
    failures = 0;
    mirror.reason ??= 'reconnecting';
    open(phase === FAILED && !mirror.revision ? CONNECTING : DISCONNECTED);
  };

  mirror.close = () => {
    closed.abort();
    stop(CLOSED);
    tell(CLOSED);
  };

  // A network that is back is not used at once: a whole office may come back at the same moment. A page from the
  // back/forward cache has its old state, and nobody feeds it any more.
  const wake = ({ type, persisted }) => {
    if (type === 'online') setTimeout(() => mirror.state === DISCONNECTED && mirror.reconnect(), 1000 * Math.random());
    else if (persisted && phase !== FAILED) mirror.reconnect();
  };
  for (const type of ['online', 'pageshow']) scope.addEventListener?.(type, wake, closed);

  // --- one stream ---------------------------------------------------------------------------------------------------


  const withOptions = async () => {
    let ask = fetch;
    if (!/^(auto|fetch)?,(ndjson)?$/.test([transport, format])) ask = (await import('./event-source.js')).byEvents(ask, options);
    return token ? (await import('./tokens.js')).withToken(ask, token, mirror, listen) : ask;
  };

  const hear = () => {
    // After a long silence, what comes may be as old: the machine may have slept.
    if (isSilent()) throw SILENT;
    [mirror.lastHeard] = listen();
    prove();
  };

  const stream = async (signal) => {
    const resume = mirror.cursor ? `&last_event_id=${percentEncode(mirror.cursor)}` : '';
    // A file that could not be loaded is asked for again at the next try. (Firefox does so only in another page.)
    const ask = await (chosen ??= withOptions().catch((why) => {
      chosen = null;
      throw why;
    }));
    // Without `no-store`, Firefox lets a second stream of the same URL wait 20 s for the first one. A redirect is not
    // followed: mostly it leads to a page to log in, and a token is for the gateway.
    const answer = await ask(address + resume, { headers: { Accept: NDJSON }, signal, cache: 'no-store', redirect: 'manual' });
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
    const [event, key, apply] = parse(line);
    mirror.cursor = event.cursor ?? mirror.cursor;
    apply(event, key);
  };

  // The event of a line, its key as a string, and what applies it.
  const parse = (line) => {
    try {
      const event = JSON.parse(line);
      const [like, apply = say.bind(null, event.type)] = on[event.type] ?? [];
      if (pairsOf({ type: '', ...like }).every(([name, value]) => typeof event[name] === typeof value))
        return [event, event.key_encoding ? fromBase64(event.key) : event.key, apply];
    } catch { /* not JSON, or not base64 */ }
    throw { reason: `not an event of the gateway: ${line.slice(0, 200)}` };
  };

  const change = (event, key) => {
    aside.set(key, event.type === 'put' ? toEntry(key, event) : undefined);
    if (!reset && !event.more) commit(event.mod_revision);
  };

  // For each type of event the members without which it cannot be applied, with a value of their type, and what applies
  // it. An event that failed half-way would corrupt the mirror.
  const ofKey = [{ key: '', mod_revision: 0 }, change];
  const on = {
    put: ofKey,
    delete: ofKey,
    reset: [{ reason: '' }, ({ reason, ranges = null }) => {
      aside = new Map();
      reset = { reset: reason };
      synced = false;
      mirror.ranges = ranges;
      tell(`reset: ${reason}`);
      say('reset', { reason, ranges });
    }],
    synced: [{ revision: 0, heartbeat: 0 }, (event) => {
      heartbeat = event.heartbeat || heartbeat;
      failures = 0;
      synced = true;
      address = address.replace(/&min_revision=\d+/, ''); // it is reached; after a restore it may never be again
      commit(event.revision);
    }],
    bookmark: [{ revision: 0, state: '' }, ({ state, revision }) => {
      // `stale` without a `status` before: the cause is this stream, which is behind, and not etcd.
      doubt = state === STALE && (doubt || BEHIND);
      mirror.revision = revision;
      tell();
    }],
    // `detail` and `retry_at` are those of a shared worker, which has the connection.
    status: [{ state: '' }, ({ state, since, age, expires, detail, retry_at = null }) => {
      mirror.expires = expires ?? mirror.expires;
      mirror.retryAt = retry_at;
      doubt = state === STALE && (detail || `etcd is out of reach, or ${BEHIND}`);
      const proven = now(-1000 * age)[0] || Date.parse(since); // an older gateway says only the time of its clock
      if (doubt && proven && synced) mirror.provenAt = Math.min(mirror.provenAt ?? proven, proven);
      tell();
    }],
    close: [{ reason: '', retry_ms: 0 }, ({ reason, detail, retry_ms }) => {
      throw { reason: detail ? `${reason}: ${detail}` : reason, wait: retry_ms };
    }],
  };

  // Applies what is aside. The differences of a new state are reported as changes, too, deletes first.
  const commit = (revision) => {
    const { entries } = mirror;
    const changes = [];
    const gone = reset ? [...entries.keys()].filter((key) => !aside.has(key)) : [];
    for (const [key, entry] of [...gone.map((key) => [key]), ...aside]) {
      const previous = entries.get(key);
      if (entry && previous && pairsOf(entry).every(([name, value]) => value === previous[name])) continue;
      if (entry && decode) {
        try { entry.decoded = decode(entry.value, entry); } catch (error) { entry.decodeError = error; }
      }
      if (entry) entries.set(key, entry);
      else entries.delete(key);
      changes.push({ type: entry ? 'put' : 'delete', key, entry, previous });
    }
    mirror.revision = revision;
    prove(); // before anybody is told
    if (changes[0]) say('changes', { revision, changes, ...reset });
    aside = new Map();
    reset = null;
    tell();
  };

  open();
}
