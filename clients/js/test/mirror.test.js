// The mirror, with a gateway that the test plays. The cases that all clients share are in tests/examples.
import assert from 'node:assert/strict';
import { describe, mock, test } from 'node:test';
import { Mirror } from '../etcd-watch-client.js';
import { LIMIT, follow, gateway, hear, kept, turns } from './following.js';
import { Gateway, cursor, until } from './playing.js';

describe('what it asks for', LIMIT, () => {
  test('ranges of all kinds, options and the format', async () => {
    follow({ keysOnly: true, mode: 'latest', query: { interval: '2s', min_revision: 15 } }, ['/a&b=', { key: '/ü' }, { prefix: '' }]);
    const { request } = await gateway.stream();
    assert.equal(
      request.url,
      '/v1/watch?prefix=%2Fa%26b%3D&key=%2F%C3%BC&prefix=&keys_only=1&mode=latest&interval=2s&min_revision=15&format=ndjson',
    );
    assert.equal(request.headers.accept, 'application/x-ndjson');
  });

  test('a least revision until it is reached: after a restore, etcd may be below it', async () => {
    const mirror = follow({ query: { min_revision: 70 } });
    const asked = [];
    const next = async () => {
      const stream = await gateway.stream();
      asked.push(stream.query.get('min_revision'));
      return stream.open();
    };
    (await next()).send('close', { reason: 'revision-not-reached', retry_ms: 1 });
    (await next()).state(70).state(30, {}, { reason: 'restored' }).send('close', { reason: 'max-age', retry_ms: 1 });
    (await next()).synced(31);
    await mirror.synced();
    assert.deepEqual([mirror.revision, asked], [31, ['70', '70', null]]);
  });

  test('the path under which a proxy serves the gateway', async () => {
    kept(new Mirror(`${gateway.url}/etcd//?x=1#top`, ''));
    assert.equal((await gateway.stream()).request.url, '/etcd/v1/watch?prefix=&format=ndjson');
  });

  test('a key of any bytes, as the mirror shows it', async () => {
    const mirror = follow();
    const stream = (await gateway.stream()).open();
    const binary = { key: '//8vYQ==', key_encoding: 'base64', value: 'AP8=', encoding: 'base64' };
    stream.send('reset', { reason: 'initial', ranges: [] }, 0);
    stream.put('x', '', 3, { live: false, ...binary }).put('//8vYQ==', 'text', 3, { live: false }).synced(3);
    await mirror.synced();
    const [entry, other] = mirror.entries.values();
    assert.deepEqual([entry.keyBase64, entry.value, entry.valueBase64], ['//8vYQ==', null, 'AP8=']);
    assert.deepEqual([other.key, other.keyBase64, other.value, other.valueBase64], ['//8vYQ==', undefined, 'text', undefined]);
    assert.equal(mirror.entries.get('\udcff\udcff/a'), entry);
    follow({}, { key: entry.key });
    assert.match((await gateway.stream()).request.url, /\?key=%ff%ff%2Fa&/);
    follow({}, '/\ud800\udc80'); // a pair of surrogates is one character
    assert.match((await gateway.stream()).request.url, /\?prefix=%2F%F0%90%82%80&/);
  });
});

describe('a wrong call fails at once, and says what to write', LIMIT, () => {
  const throws = (message, ...words) => assert.throws(() => new Mirror(...words), { name: 'TypeError', message });

  test('what is not the URL of a gateway', () => {
    for (const url of ['127.0.0.1:8080', 'localhost:8080', 'ftp://127.0.0.1', '/svc/', '', null, undefined])
      throws(`${url} is not the URL of a gateway; write http://HOST:PORT`, url, '/');
  });

  test('what is not a range', () => {
    const wrong = [undefined, null, [], {}, 5, { Prefix: '/' }, { key: undefined }, { prefix: 5 }, ['/', undefined], [['/']]];
    for (const ranges of wrong) throws('name a prefix ("" is all keys) or a { key }', gateway.url, ranges);
  });

  test('options that do not exist, or are not what is called', () => {
    throws('there is no option tokn', gateway.url, '/', { tokn: 'x' });
    throws('there is no option 0', gateway.url, '/', '/second/');
    for (const options of [{ decode: 'json' }, { fetch: 'x' }]) throws('decode and fetch are functions', gateway.url, '/', options);
    for (const absent of [null, undefined]) follow({ token: absent, decode: absent, keysOnly: absent, mode: absent, query: absent });
  });

  test('a transport or a format that does not exist', async () => {
    for (const options of [{ transport: 'websocket' }, { format: 'json' }]) {
      const { transport, format } = options;
      await assert.rejects(follow(options).synced(), { message: `there is no transport ${transport} with format ${format}` });
    }
  });
});

describe('what it tells', LIMIT, () => {
  test('entries, changes with what was before, and one change for a transaction', async () => {
    const mirror = follow();
    const changes = hear(mirror, 'changes');
    const resets = hear(mirror, 'reset');
    assert.equal(mirror.state, 'connecting');
    const stream = (await gateway.stream()).open({ 'X-Gateway-Instance': 'gw-1', 'X-Gateway-Tier': '1' });
    await turns(mirror, 'syncing');
    assert.deepEqual([mirror.instance, mirror.tier, mirror.provenAt], ['gw-1', '1', null]);
    stream.state(10, { a: '1', b: '2' });
    await mirror.synced();
    assert.deepEqual([mirror.revision, mirror.cursor, mirror.ranges], [10, cursor(10), ['prefix=/c/']]);
    assert.deepEqual(mirror.entries.get('/c/a'), {
      key: '/c/a', value: '1', createRevision: 1, modRevision: 10, version: 1, lease: null,
    });
    const before = mirror.entries.get('/c/a');
    stream.put('/c/a', 'one', 11, { more: true, lease: '7f' }).delete('/c/b', 11);
    await until(() => mirror.revision === 11);
    assert.deepEqual(resets, [{ reason: 'initial', ranges: ['prefix=/c/'] }]);
    assert.deepEqual(changes[0].changes.map(({ type, key, previous }) => [type, key, previous]),
      [['put', '/c/a', undefined], ['put', '/c/b', undefined]]);
    assert.equal(changes[0].reset, 'initial');
    const [put, gone] = changes[1].changes;
    assert.deepEqual([changes[1].revision, changes[1].reset, changes.length], [11, undefined, 2]);
    assert.deepEqual([put.type, put.entry.value, put.entry.lease, put.previous], ['put', 'one', '7f', before]);
    assert.deepEqual([gone.type, gone.key, gone.entry, gone.previous.value], ['delete', '/c/b', undefined, '2']);
    assert.deepEqual([...mirror.entries.keys()], ['/c/a']);
  });

  test('an entry that a reset does not change stays the same object', async () => {
    const mirror = follow();
    const stream = (await gateway.stream()).open().state(10, { a: '1', b: '2' });
    await mirror.synced();
    const { entries } = mirror;
    const kept = entries.get('/c/a');
    stream.send('reset', { reason: 'lagged', ranges: [] }, 0);
    await turns(mirror, 'syncing');
    assert.deepEqual([mirror.reason, entries.size, mirror.revision], ['reset: lagged', 2, 10]);
    stream.put('/c/a', '1', 10, { live: false }).put('/c/c', '3', 12, { live: false }).synced(12);
    await mirror.synced();
    assert.equal(mirror.entries, entries);
    assert.equal(entries.get('/c/a'), kept);
    assert.deepEqual([...entries.keys()], ['/c/a', '/c/c']);
  });

  test('decoded values, once for each entry, and what cannot be decoded', async () => {
    const decode = mock.fn(JSON.parse);
    const mirror = follow({ decode });
    const stream = (await gateway.stream()).open().state(10, { a: '{"x":1}', b: '{' });
    await mirror.synced();
    assert.deepEqual(mirror.entries.get('/c/a').decoded, { x: 1 });
    assert.ok(mirror.entries.get('/c/b').decodeError instanceof SyntaxError);
    stream.state(10, { a: '{"x":1}', b: '{' }, { reason: 'lagged' }).put('/c/z', '2', 11);
    await until(() => mirror.revision === 11);
    assert.equal(decode.mock.callCount(), 3);
  });

  test('why it is not live, since when, and until when the credentials last', async () => {
    const mirror = follow();
    const stream = (await gateway.stream()).open().state(10);
    await mirror.synced();
    const proven = mirror.provenAt;
    assert.ok(Math.abs(Date.now() - proven) < 60_000);
    const since = new Date(Date.now() - 100_000);
    stream.send('status', { state: 'stale', since: since.toISOString(), ranges: [] });
    await turns(mirror, 'stale');
    assert.equal(mirror.reason, 'etcd is out of reach, or this client is behind');
    assert.equal(mirror.provenAt, since.getTime());
    stream.send('status', { state: 'stale', since: new Date(0).toISOString(), age: 200, ranges: [] }); // the clocks differ
    await until(() => mirror.provenAt < since.getTime());
    assert.ok(mirror.provenAt >= since.getTime() - 100_000);
    assert.ok(mirror.lastHeard >= proven);
    stream.send('status', { state: 'live', expires: '2030-01-01T00:00:00Z', ranges: [] });
    await mirror.synced();
    assert.deepEqual([mirror.reason, mirror.expires], [null, '2030-01-01T00:00:00Z']);
    assert.ok(mirror.provenAt >= proven);
  });

  test('it is not stale before it has a state: it has nothing that could be old', async () => {
    const mirror = follow();
    const told = hear(mirror, 'state');
    const stream = (await gateway.stream()).open();
    stream.send('status', { state: 'stale', since: new Date(0).toISOString(), age: 200, ranges: [] });
    await until(() => mirror.reason === 'etcd is out of reach, or this client is behind');
    assert.deepEqual([mirror.state, mirror.revision, mirror.provenAt], ['syncing', 0, null]);
    stream.state(10);
    await turns(mirror, 'stale');
    assert.deepEqual([mirror.revision, mirror.reason], [10, 'etcd is out of reach, or this client is behind']);
    stream.send('status', { state: 'live', ranges: [] });
    await mirror.synced();
    assert.deepEqual(told.map(({ state }) => state), ['syncing', 'syncing', 'stale', 'live']);
  });

  test('a gateway that has proven nothing for long says nothing of the state of another one', async () => {
    const mirror = follow();
    const first = (await gateway.stream()).open().state(10);
    await mirror.synced();
    const { provenAt } = mirror;
    first.send('close', { reason: 'drain', retry_ms: 1 });
    const stream = (await gateway.stream()).open();
    stream.send('status', { state: 'stale', since: new Date(provenAt - 3_600_000).toISOString(), age: 3600, ranges: [] });
    await turns(mirror, 'stale');
    assert.ok(mirror.provenAt >= provenAt);
  });

  test('a state without words is one, too', async () => {
    const mirror = follow();
    const shown = hear(mirror, 'changes');
    const stream = (await gateway.stream()).open().state(10, { a: '1', b: '2' }, { reason: '' });
    await mirror.synced();
    assert.deepEqual(shown.map(({ reset, changes }) => [reset, changes.length]), [['', 2]]);
    stream.send('status', { state: 'stale', detail: '', ranges: [] });
    await turns(mirror, 'stale');
    assert.equal(mirror.reason, 'etcd is out of reach, or this client is behind');
  });

  test('an event that it does not know, with its cursor, between the events of a transaction', async () => {
    const mirror = follow();
    const stream = (await gateway.stream()).open().state(10);
    await mirror.synced();
    const news = hear(mirror, 'news');
    stream.put('/c/a', '1', 11, { more: true }).send('news', { about: 'weather' }).put('/c/b', '2', 11);
    stream.send('news', {}, 12);
    await until(() => news.length === 2);
    assert.deepEqual(news, [{ type: 'news', about: 'weather' }, { type: 'news', cursor: cursor(12) }]);
    assert.deepEqual([mirror.revision, mirror.entries.size, mirror.cursor, mirror.state], [11, 2, cursor(12), 'live']);
  });

  test('the time of the next try, and the reason, while nothing answers', async () => {
    const dead = await Gateway.start();
    const { url } = dead;
    dead.stop();
    mock.restoreAll();
    const mirror = kept(new Mirror(url, '/c/'));
    await turns(mirror, 'disconnected');
    const wait = mirror.retryAt - Date.now();
    assert.ok(wait > -1000 && wait <= 1000, `${wait}`);
    assert.match(mirror.reason, /^no answer: connect ECONNREFUSED/);
    assert.deepEqual([mirror.lastHeard, mirror.provenAt], [null, null]);
  });

  test('a listener may close the mirror, or open it again', async () => {
    const mirror = follow();
    const stream = (await gateway.stream()).open();
    mirror.addEventListener('changes', () => mirror.close());
    stream.state(10, { a: '1' }).put('/c/a', '2', 11);
    await stream.closed;
    assert.deepEqual([mirror.state, mirror.reason, mirror.revision], ['closed', 'closed', 10]);
    await assert.rejects(mirror.synced(), /closed/);
    mirror.reconnect();
    assert.equal(mirror.state, 'closed');

    const other = follow();
    let times = 0;
    other.addEventListener('state', () => { if (other.state === 'disconnected' && !times++) other.reconnect(); });
    (await gateway.stream()).cut();
    (await gateway.stream()).open().state(10);
    await other.synced();
    assert.equal(gateway.waiting, 0);
  });
});

describe('how long it waits', LIMIT, () => {
  const waits = async (answer, random = 0) => {
    mock.restoreAll();
    mock.method(Math, 'random', () => random);
    const now = Date.now();
    mock.method(Date, 'now', () => now); // a busy machine would take its time to look
    const mirror = follow({ format: 'sse' });
    answer(await gateway.stream());
    await until(() => mirror.retryAt);
    const wait = mirror.retryAt - now;
    mirror.close();
    return wait;
  };

  test('Retry-After, and a random time on top', async () => {
    assert.equal(await waits((stream) => stream.problem(503, 'draining', { 'Retry-After': '7' })), 7100);
    assert.equal(await waits((stream) => stream.problem(429, 'too-many-feeds', { 'Retry-After': '7' }), 1), 8000);
    assert.equal(await waits((stream) => stream.answer(503, { 'Retry-After': '99999999999' })), 300_000);
    assert.equal(await waits((stream) => stream.answer(503, { 'Retry-After': 'soon' })), 100);
    assert.equal(await waits((stream) => stream.answer(503, { 'Retry-After': '-9' })), 100);
  });

  test('`retry:` after a disconnect, and `retry_ms` after a close', async () => {
    assert.equal(await waits((stream) => { stream.open({ retry: 4000 }).state(1).response.end(); }), 4100);
    assert.equal(await waits((stream) => stream.open().send('close', { reason: 'drain', retry_ms: 9000 })), 9100);
  });

  test('longer after each failure, up to half a minute, until a stream is live', async () => {
    mock.restoreAll();
    mock.method(Math, 'random', () => 1);
    const { setTimeout } = globalThis;
    mock.method(globalThis, 'setTimeout', (wake, delay, ...rest) => setTimeout(wake, Math.min(delay ?? 0, 5), ...rest));
    const mirror = follow();
    const waits = [];
    mirror.addEventListener('state', () => {
      if (mirror.retryAt) waits.push(Math.ceil((mirror.retryAt - Date.now()) / 1000));
    });
    for (let failure = 0; failure < 7; failure++)
      (await gateway.stream()).answer(502, { 'Content-Type': 'text/html' }, '<p>Bad\n gateway</p>');
    const stream = await gateway.stream();
    assert.equal(mirror.reason, "HTTP 502, text/html, not the gateway's answer: <p>Bad gateway</p>");
    stream.open().state(1);
    await mirror.synced();
    stream.cut();
    await gateway.stream();
    assert.deepEqual(waits, [1, 2, 4, 8, 16, 30, 30, 1]);
  });
});

test('when the machine is online again, it does not wait', LIMIT, async () => {
  const page = new EventTarget();
  globalThis.addEventListener = (...words) => page.addEventListener(...words);
  try {
    const mirror = follow();
    (await gateway.stream()).problem(503, 'draining', { 'Retry-After': '200' });
    await turns(mirror, 'disconnected');
    page.dispatchEvent(new Event('online'));
    (await gateway.stream()).open().state(1);
    await mirror.synced();
    page.dispatchEvent(new Event('online')); // a stream that is in order is left as it is
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.equal(mirror.state, 'live');
    mirror.close();
    page.dispatchEvent(new Event('online'));
    assert.equal(gateway.waiting, 0);
  } finally {
    delete globalThis.addEventListener;
  }
});

test('a page from the back/forward cache is not live before it is fed again', LIMIT, async () => {
  const page = new EventTarget();
  globalThis.addEventListener = (...words) => page.addEventListener(...words);
  const back = () => page.dispatchEvent(Object.assign(new Event('pageshow'), { persisted: true }));
  try {
    const mirror = follow();
    const stream = (await gateway.stream()).open().state(1);
    await mirror.synced();
    page.dispatchEvent(new Event('pageshow')); // a page that is loaded
    assert.equal(mirror.state, 'live');
    back();
    assert.deepEqual([mirror.state, mirror.reason], ['disconnected', 'reconnecting']);
    await stream.closed;
    (await gateway.stream()).problem(403, 'forbidden');
    await turns(mirror, 'failed');
    back(); // asks for nothing that was refused for good
    assert.equal(mirror.state, 'failed');
  } finally {
    delete globalThis.addEventListener;
  }
});

describe('what it does about a refusal', LIMIT, () => {
  test('a problem that stays ends it, until it is told to try again', async () => {
    const mirror = follow();
    const failed = hear(mirror, 'failed');
    const synced = mirror.synced();
    (await gateway.stream()).problem(403, 'forbidden');
    await assert.rejects(synced, (error) => error.message === 'HTTP 403 forbidden: no' && error.problem.code === 'forbidden');
    assert.deepEqual([mirror.state, mirror.reason, mirror.retryAt], ['failed', 'HTTP 403 forbidden: no', null]);
    assert.deepEqual(failed, [{ status: 403, code: 'forbidden', detail: 'no' }]);
    assert.equal(mirror.problem, failed[0]);
    mirror.reconnect();
    assert.equal(mirror.state, 'connecting');
    (await gateway.stream()).open().state(1);
    await mirror.synced();
    assert.deepEqual([mirror.problem, mirror.reason], [null, null]);
  });

  test('told to try again, a mirror that has entries has no stream, and does not begin', async () => {
    const mirror = follow();
    const stream = (await gateway.stream()).open().state(10, { a: '1' });
    await mirror.synced();
    stream.cut();
    (await gateway.stream()).problem(403, 'forbidden');
    await turns(mirror, 'failed');
    mirror.reconnect();
    assert.deepEqual([mirror.state, mirror.retryAt, mirror.entries.size], ['disconnected', null, 1]);
    const next = await gateway.stream();
    assert.equal(next.query.get('last_event_id'), cursor(10));
    next.open().synced(10);
    await mirror.synced();
  });

  test('a 501 is final at the start only', async () => {
    const mirror = follow();
    const first = (await gateway.stream()).open().state(10, { a: '1' });
    await mirror.synced();
    first.cut();
    (await gateway.stream()).problem(501, 'ranges-need-pin');
    const stream = await gateway.stream();
    assert.deepEqual([mirror.problem.code, stream.query.get('last_event_id')], ['ranges-need-pin', cursor(10)]);
    const other = follow();
    (await gateway.stream()).problem(501, 'ranges-need-pin');
    await turns(other, 'failed');
  });

  test('a problem that passes is named, and kept until a stream opens', async () => {
    const mirror = follow();
    (await gateway.stream()).problem(503, 'etcd-unavailable');
    const stream = await gateway.stream();
    assert.deepEqual([mirror.state, mirror.problem.code], ['disconnected', 'etcd-unavailable']);
    stream.open();
    await turns(mirror, 'syncing');
    assert.equal(mirror.problem, null);
  });

  test('an answer of somebody else is named, and tried again', async () => {
    const mirror = follow();
    (await gateway.stream()).answer(302, { Location: '/login' });
    const endless = await gateway.stream();
    assert.match(mirror.reason, /^HTTP 302 to \/login, without a content type, not the gateway's answer/);
    endless.response.writeHead(200, { 'Content-Type': 'text/html' });
    endless.raw('<h1>Log in</h1>');
    await endless.closed;
    const broken = await gateway.stream();
    assert.equal(mirror.reason, "HTTP 200, text/html, not the gateway's answer: <h1>Log in</h1>");
    broken.open().raw(Buffer.from([0x7b, 0xff, 0x0a]));
    await broken.closed;
    assert.match(mirror.reason, /^disconnected: .*not valid/);
    (await gateway.stream()).answer(404, { 'Content-Type': 'application/problem+json' }, '{"title":"No"}');
    await gateway.stream();
    assert.equal(mirror.reason, "HTTP 404, application/problem+json, not the gateway's answer: {\"title\":\"No\"}");
  });
});

describe('silence', LIMIT, () => {
  test('three heartbeats, whatever the clock of the system says', async () => {
    const mirror = follow();
    const stream = (await gateway.stream()).open().state(10, {}, { heartbeat: 0.2 });
    await mirror.synced();
    mock.method(Date, 'now', () => 0); // set back
    await stream.closed;
    assert.deepEqual([mirror.state, mirror.reason], ['disconnected', 'silent']);
    assert.equal((await gateway.stream()).query.get('last_event_id'), cursor(10));
  });

  test('after a sleep it is stale at once, and what was sent before counts for nothing', async () => {
    const mirror = follow();
    const stream = (await gateway.stream()).open().state(10);
    await mirror.synced();
    const now = Date.now();
    mock.method(Date, 'now', () => now + 46_000);
    assert.equal(mirror.state, 'stale');
    stream.put('/c/a', 'old', 11);
    await stream.closed;
    assert.deepEqual([mirror.state, mirror.reason, mirror.revision], ['disconnected', 'silent', 10]);
  });

  test('before the first state is no old state', async () => {
    const mirror = follow();
    const stream = (await gateway.stream()).open();
    await turns(mirror, 'syncing');
    const now = Date.now();
    mock.method(Date, 'now', () => now + 46_000);
    assert.equal(mirror.state, 'syncing');
    await stream.closed;
    assert.deepEqual([mirror.state, mirror.reason, mirror.revision], ['disconnected', 'silent', 0]);
  });

  test('any byte is a sign of life', async () => {
    const mirror = follow();
    const stream = (await gateway.stream()).open().state(10, {}, { heartbeat: 1.5 });
    await mirror.synced();
    for (const since = performance.now(); performance.now() - since < 5000;) { // three heartbeats are 4.5 s
      stream.raw('\n'); // several in a heartbeat, for slow machines
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    assert.equal(mirror.state, 'live');
    assert.equal(gateway.waiting, 0);
  });
});

for (const format of ['sse', 'ndjson'])
  describe(`the bytes of ${format}`, LIMIT, () => {
    test('in any pieces, with characters at which some readers end a line', async () => {
      const mirror = follow({ format });
      const stream = (await gateway.stream()).open().state(10);
      await mirror.synced();
      const text = 'ü\u2028\u2029\x85\r\n😀';
      const written = [];
      stream.response.write = (data) => written.push(Buffer.from(data));
      stream.put('/c/a', text, 11).put('/c/b', text, 12);
      delete stream.response.write;
      for (const byte of Buffer.concat(written)) {
        stream.response.write(Buffer.from([byte]));
        await new Promise(setImmediate);
      }
      await until(() => mirror.revision === 12);
      assert.deepEqual([...mirror.entries.values()].map(({ value }) => value), [text, text]);
      assert.deepEqual([mirror.cursor, mirror.state], [cursor(12), 'live']);
    });

    test('an event that is cut off is none, nor is its cursor', async () => {
      const mirror = follow({ format });
      const stream = (await gateway.stream()).open().state(10);
      await mirror.synced();
      let whole = '';
      stream.response.write = (data) => { whole += data; };
      stream.put('/c/a', '1', 11);
      delete stream.response.write;
      stream.raw(whole.slice(0, -1));
      stream.response.end();
      assert.equal((await gateway.stream()).query.get('last_event_id'), cursor(10));
      assert.deepEqual([mirror.state, mirror.reason, mirror.entries.size], ['disconnected', 'disconnected', 0]);
    });
  });

