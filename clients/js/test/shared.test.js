// Shared mirrors, with a worker in this process, and a gateway that the test plays.
import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, describe, mock, test } from 'node:test';
import { connectShared } from '../shared.js';
import { accept } from '../shared-worker.js';
import { Gateway, cursor, until } from './playing.js';

const LIMIT = { timeout: 60_000 };
let gateway;
let mirrors;
let ports; // the worker's
let tabs; // the other ends
let range = 0; // each test has its own: a worker keeps a mirror for a moment

class SharedWorker {
  constructor() {
    const { port1, port2 } = new MessageChannel();
    ports.push(port2);
    accept(port2);
    this.port = port1;
    tabs.push(port1);
  }
}

before(async () => { gateway = await Gateway.start(); });
after(() => gateway.stop());
beforeEach(() => {
  [mirrors, ports, tabs, range] = [[], [], [], range + 1];
  globalThis.SharedWorker = SharedWorker;
  mock.method(Math, 'random', () => 0);
});
afterEach(() => {
  for (const mirror of mirrors) mirror.close();
  mock.restoreAll();
  delete globalThis.SharedWorker;
});

function follow(options, ranges = `/c/${range}`) {
  const mirror = connectShared('worker.js', gateway.url, ranges, options);
  mirrors.push(mirror);
  return mirror;
}

const values = ({ entries }) => Object.fromEntries([...entries].map(([key, { value }]) => [key, value]));

describe('shared mirrors', LIMIT, () => {
  test('have one connection, and are equal', async () => {
    const first = follow({ decode: (value) => `<${value}>` });
    const stream = (await gateway.stream()).open();
    stream.state(10, { a: '1', b: '2' }).put('//8=', '//8=', 11, { key_encoding: 'base64', encoding: 'base64', lease: '7f' });
    await until(() => first.revision === 11 && first.state === 'live');
    const second = follow();
    await second.synced();
    assert.equal(gateway.waiting, 0);
    assert.deepEqual(values(second), { '/c/a': '1', '/c/b': '2', '\udcff\udcff': null });
    const binary = second.entries.get('\udcff\udcff');
    assert.deepEqual([binary.keyBase64, binary.valueBase64, binary.lease, binary.modRevision], ['//8=', '//8=', '7f', 11]);
    assert.equal(first.entries.get('/c/a').decoded, '<1>');
    assert.deepEqual([second.ranges, second.cursor, second.revision], [['prefix=/c/'], cursor(11), 11]);

    const changes = [];
    second.addEventListener('changes', ({ detail }) => changes.push(detail));
    stream.put('/c/a', 'one', 12, { more: true }).delete('/c/b', 12);
    stream.delete('/c/unknown', 13).send('bookmark', { revision: 15, state: 'live' }, 15);
    for (const mirror of mirrors) await until(() => mirror.revision === 15 && mirror.state === 'live');
    assert.deepEqual(changes.map(({ revision, changes: all }) => [revision, all.map(({ type, key }) => [type, key])]),
      [[12, [['put', '/c/a'], ['delete', '/c/b']]], [13, [['delete', '/c/unknown']]]]);
    assert.deepEqual(values(first), values(second));
    assert.equal(second.cursor, cursor(15));
  });

  test('say which gateway answers', async () => {
    const mirror = follow();
    let stream = (await gateway.stream()).open({ 'X-Gateway-Instance': 'gw-1', 'X-Gateway-Tier': '1' });
    await until(() => mirror.instance === 'gw-1');
    assert.deepEqual([mirror.tier, mirror.revision], ['1', 0]);
    stream.state(10, { a: '1' });
    await mirror.synced();
    const second = follow();
    await second.synced();
    assert.deepEqual([second.instance, second.tier], ['gw-1', '1']);
    stream.send('close', { reason: 'drain', retry_ms: 1 });
    stream = (await gateway.stream()).open({ 'X-Gateway-Instance': 'gw-2' }).synced(10);
    for (const one of mirrors) await until(() => one.instance === 'gw-2' && one.tier === null);
  });

  test('of an empty range are live, too', async () => {
    const mirror = follow();
    (await gateway.stream()).open().state(10);
    await mirror.synced();
    assert.deepEqual([mirror.revision, mirror.entries.size, mirror.cursor], [10, 0, cursor(10)]);
  });

  test('tell why they are not live, and when the next try is', async () => {
    const mirror = follow();
    const stream = (await gateway.stream()).open().state(10, { a: '1' });
    await mirror.synced();
    stream.send('status', { state: 'stale', since: '2026-01-01T00:00:00Z', ranges: [] });
    await until(() => mirror.state === 'stale');
    assert.deepEqual([mirror.reason, mirror.provenAt],
      ['etcd is out of reach, or this client is behind', Date.parse('2026-01-01T00:00:00Z')]);
    stream.send('bookmark', { revision: 11, state: 'stale' }, 11);
    await until(() => mirror.revision === 11);
    assert.equal(mirror.reason, 'etcd is out of reach, or this client is behind');
    stream.send('status', { state: 'live', ranges: [], expires: '2030-01-01T00:00:00Z' });
    await mirror.synced();
    assert.equal(mirror.expires, '2030-01-01T00:00:00Z');
    stream.send('close', { reason: 'drain', retry_ms: 200 });
    await until(() => mirror.retryAt);
    assert.deepEqual([mirror.state, mirror.reason, values(mirror)], ['stale', 'drain', { '/c/a': '1' }]);
    const again = await gateway.stream();
    assert.equal(again.query.get('last_event_id'), cursor(11));
    again.open().send('reset', { reason: 'lagged', ranges: [] }, 0);
    await until(() => mirror.reason === 'reset: lagged');
    const late = follow(); // joins while the worker has no whole state: it gets the old one
    await until(() => late.revision === 11);
    assert.deepEqual([late.state, values(late)], ['stale', { '/c/a': '1' }]);
    again.put('/c/b', '2', 20, { live: false }).synced(20);
    for (const one of mirrors) {
      await until(() => one.state === 'live');
      assert.deepEqual([values(one), one.revision, one.retryAt], [{ '/c/b': '2' }, 20, null]);
    }
  });

  test('are not stale before they have a state, and tell why there is none', async () => {
    const mirror = follow();
    const told = [];
    mirror.addEventListener('state', () => told.push([mirror.state, mirror.revision > 0]));
    (await gateway.stream()).problem(503, 'etcd-unavailable', { 'Retry-After': '200' });
    await until(() => mirror.retryAt);
    assert.deepEqual([mirror.state, mirror.reason], ['syncing', 'HTTP 503 etcd-unavailable: no']);
    const late = follow(); // who joins does not wait
    const stream = (await gateway.stream()).open();
    await until(() => mirror.retryAt === null);
    stream.send('status', { state: 'stale', since: '2026-01-01T00:00:00Z', age: 200, ranges: [] });
    await until(() => mirror.reason === 'etcd is out of reach, or this client is behind');
    await until(() => late.reason === mirror.reason);
    assert.deepEqual([mirror.state, late.state, mirror.revision, mirror.provenAt], ['syncing', 'syncing', 0, null]);
    stream.send('status', { state: 'live', ranges: [] }).state(10, { a: '1' });
    for (const one of mirrors) await one.synced();
    assert.deepEqual(told.filter(([state, has]) => state === 'stale' || has), [['live', true]]);
    const next = follow(undefined, `/d/${range}`); // whose first state is old
    (await gateway.stream()).open().send('status', { state: 'stale', ranges: [] }).state(10, { a: '1' });
    await until(() => next.revision === 10);
    assert.deepEqual([next.state, next.reason], ['stale', 'etcd is out of reach, or this client is behind']);
  });

  test('have a connection for each token and each selection', async () => {
    follow({ token: 'alice' });
    assert.equal((await gateway.stream()).request.headers.authorization, 'Bearer alice');
    follow({ token: 'bob' });
    assert.equal((await gateway.stream()).request.headers.authorization, 'Bearer bob');
    follow({ token: 'bob', keysOnly: true });
    assert.equal((await gateway.stream()).query.get('keys_only'), '1');
    follow({ token: 'bob' }, { key: '/c/a' });
    assert.equal((await gateway.stream()).query.get('key'), '/c/a');
    follow({ token: () => 'alice' });
    await until(() => mirrors.at(-1).state === 'syncing');
    assert.equal(gateway.waiting, 0);
  });

  test('the worker asks for the format that the options name', async () => {
    const mirror = follow({ format: 'sse', token: 'alice' });
    const stream = await gateway.stream();
    assert.deepEqual([stream.query.get('format'), stream.request.headers.accept], ['sse', 'text/event-stream']);
    stream.open().state(10, { a: '1' });
    await mirror.synced();
    assert.deepEqual([values(mirror), tabs.length], [{ '/c/a': '1' }, 1]);
  });

  test('a refusal fails all of them, and a new try asks again', async () => {
    const [one, two] = [follow(), follow()];
    (await gateway.stream()).problem(403, 'forbidden');
    for (const mirror of [one, two]) await until(() => mirror.state === 'failed');
    assert.deepEqual([one.problem.code, two.reason], ['forbidden', 'HTTP 403 forbidden: no']);
    one.reconnect();
    (await gateway.stream()).open().state(10);
    await one.synced();
    assert.equal(two.state, 'failed');
  });

  test('a token that has ended is asked for once more', async () => {
    let number = 0;
    const mirror = follow({ token: () => `token-${++number}` });
    (await gateway.stream()).problem(401, 'unauthorized');
    const stream = await gateway.stream();
    assert.equal(stream.request.headers.authorization, 'Bearer token-2');
    stream.open().state(10);
    await mirror.synced();
    stream.send('close', { reason: 'expired', retry_ms: 1 });
    (await gateway.stream()).problem(401, 'unauthorized'); // the worker's own try, with the token that has ended
    (await gateway.stream()).problem(401, 'unauthorized');
    const last = await gateway.stream(); // it was valid before, so another one may come
    assert.equal(last.request.headers.authorization, 'Bearer token-4');
  });

  test('a function whose tokens are refused is asked twice, and for a while if one was accepted before', async () => {
    let asked = 0;
    const mirror = follow({ token: () => { asked++; return 'token'; } });
    const refuseUntil = async (condition) => {
      while (!condition()) {
        await until(() => gateway.waiting || condition());
        if (gateway.waiting) (await gateway.stream()).problem(401, 'unauthorized');
      }
    };
    await refuseUntil(() => mirror.state === 'failed');
    assert.deepEqual([asked, mirror.problem.code], [2, 'unauthorized']);
    mirror.reconnect(); // after a new login
    const stream = (await gateway.stream()).open().state(10, { a: '1' });
    await mirror.synced();
    const { provenAt } = mirror;
    stream.send('close', { reason: 'expired', retry_ms: 1 });
    await refuseUntil(() => asked === 7 || mirror.state === 'failed');
    // A worker that has not been answered yet knows nothing of the state that the tab has.
    assert.deepEqual([asked, mirror.provenAt >= provenAt, mirror.entries.size], [7, true, 1]);
    const now = performance.now();
    mock.method(performance, 'now', () => now + 151_000);
    await refuseUntil(() => mirror.state === 'failed');
  });

  test('the connection ends with the last of them', async () => {
    const [one, two] = [follow(), follow()];
    const stream = (await gateway.stream()).open().state(10, { a: '1' });
    await two.synced();
    one.close();
    stream.put('/c/a', '2', 11);
    await until(() => two.revision === 11);
    two.close();
    await stream.closed;
  });

  test('a tab that leaves twice does not end the connection of the next one', async () => {
    const first = follow();
    const stream = (await gateway.stream()).open().state(10, { a: '1' });
    await first.synced();
    for (let time = 0; time < 2; time++) tabs[0].postMessage({ leave: true });
    const second = follow();
    await second.synced();
    await new Promise((resolve) => setTimeout(resolve, 2500)); // longer than the worker keeps a mirror without a tab
    stream.put('/c/a', '2', 11);
    await until(() => second.revision === 11);
    assert.equal(second.state, 'live');
  });

  test('a worker that is gone is noticed like a gateway that is gone', async () => {
    const mirror = follow();
    (await gateway.stream()).open().state(10, { a: '1' }, { heartbeat: 100 }); // the worker is in order
    await mirror.synced();
    ports[0].postMessage = () => {};
    const now = Date.now();
    mock.method(Date, 'now', () => now + 46_000);
    assert.equal(mirror.state, 'stale');
    await until(() => mirror.state === 'live');
    assert.equal(ports.length, 2);
  });

  test('a worker that speaks while its gateway is silent proves nothing', async () => {
    const beats = [];
    mock.method(globalThis, 'setInterval', (work) => { beats.push(work); return 0; });
    const mirror = follow();
    const stream = (await gateway.stream()).open().state(10, { a: '1' });
    await mirror.synced();
    const { provenAt, lastHeard } = mirror;
    assert.ok(provenAt && lastHeard >= provenAt);
    const now = Date.now();
    mock.method(Date, 'now', () => now + 30_000); // the gateway is silent, and not yet given up
    let got = 0;
    tabs[0].addEventListener('message', () => got++);
    for (const beat of beats) beat();
    await until(() => got && mirror.state === 'live');
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.deepEqual([mirror.provenAt, mirror.lastHeard], [provenAt, lastHeard]);
    stream.put('/c/a', '2', 11);
    await until(() => mirror.revision === 11);
    assert.ok(mirror.provenAt >= now + 30_000);
  });

  test('a page from the back/forward cache is not live before it is fed again', async () => {
    const page = new EventTarget();
    globalThis.addEventListener = (...words) => page.addEventListener(...words);
    try {
      const mirror = follow();
      const stream = (await gateway.stream()).open().state(10, { a: '1' });
      await mirror.synced();
      page.dispatchEvent(new Event('pageshow')); // a page that is loaded
      assert.equal(mirror.state, 'live');
      page.dispatchEvent(new Event('pagehide')); // the worker does not feed it any more
      await stream.closed;
      page.dispatchEvent(Object.assign(new Event('pageshow'), { persisted: true }));
      assert.equal(mirror.state, 'disconnected');
      (await gateway.stream()).open().state(11, { a: '2' });
      await mirror.synced();
      assert.deepEqual(values(mirror), { '/c/a': '2' });
    } finally {
      delete globalThis.addEventListener;
    }
  });

  test('a worker that cannot be loaded, or that does not answer, is replaced by an own connection', async () => {
    for (const event of ['onerror', null]) {
      globalThis.SharedWorker = class {
        port = new MessageChannel().port1;
        constructor() { if (event) setTimeout(() => this[event](new Event('error'))); }
      };
      const mirror = follow();
      await until(() => mirror.state === 'disconnected' || !event);
      if (event) assert.equal(mirror.reason, 'the worker does not load');
      else mirror.reconnect();
      assert.deepEqual([mirror.lastHeard, mirror.provenAt], [null, null]);
      (await gateway.stream()).open().state(10);
      await mirror.synced();
      assert.ok(mirror.provenAt && mirror.lastHeard >= mirror.provenAt); // there is no worker that says it
    }
    delete globalThis.SharedWorker;
    const mirror = follow();
    (await gateway.stream()).open().state(10);
    await mirror.synced();
  });

  test('the connection of its own is made as the options ask', async () => {
    const asked = [];
    class EventSource extends EventTarget {
      constructor(url) {
        super();
        asked.push(new URL(url).searchParams.get('format'));
        setTimeout(() => { this.readyState = 2; this.onerror(); }); // gives up, so fetch() asks for the reason
      }

      close() {}
    }
    for (const isSilent of [false, true]) {
      let workers = 0;
      globalThis.SharedWorker = class {
        port = new MessageChannel().port1;
        constructor() {
          workers++;
          if (!isSilent) setTimeout(() => this.onerror(new Event('error')));
        }
      };
      const left = async (mirror, before = workers) => {
        await until(() => workers > before);
        if (isSilent) mirror.reconnect();
      };
      const bySse = follow({ format: 'sse', token: 'alice' });
      await left(bySse);
      const stream = await gateway.stream();
      const { accept: kind, authorization } = stream.request.headers;
      assert.deepEqual([stream.query.get('format'), kind, authorization], ['sse', 'text/event-stream', 'Bearer alice']);
      stream.open().state(10, { a: '1' });
      await bySse.synced();
      assert.deepEqual(values(bySse), { '/c/a': '1' });

      const byEventSource = follow({ transport: 'eventsource', EventSource });
      await left(byEventSource);
      (await gateway.stream()).problem(403, 'forbidden');
      await until(() => byEventSource.state === 'failed');
      assert.deepEqual([asked.splice(0), byEventSource.problem.code], [['sse'], 'forbidden']);
    }
  });

  test('a page that may have no worker has its own connection', async () => {
    globalThis.SharedWorker = class {
      constructor() { throw new DOMException('Access is denied to shared workers', 'SecurityError'); } // in a sandbox
    };
    const mirror = follow();
    await until(() => mirror.state === 'disconnected');
    assert.equal(mirror.reason, 'no answer: Access is denied to shared workers');
    (await gateway.stream()).open().state(10);
    await mirror.synced();
    assert.ok(mirror.provenAt && mirror.lastHeard >= mirror.provenAt);
  });
});
