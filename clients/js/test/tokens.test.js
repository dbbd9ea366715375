// Tokens: the mirror with a gateway that the test plays.
import assert from 'node:assert/strict';
import { describe, mock, test } from 'node:test';
import { LIMIT, follow, gateway, turns } from './following.js';
import { cursor, until } from './playing.js';

describe('tokens', LIMIT, () => {
  const bearer = (stream) => stream.request.headers.authorization;

  test('a function is asked for each connection, and once more when the token is refused', async () => {
    let number = 0;
    const mirror = follow({ token: async () => ` token-${++number}\n` });
    let stream = await gateway.stream();
    assert.equal(bearer(stream), 'Bearer token-1');
    stream.problem(401, 'unauthorized');
    stream = await gateway.stream();
    assert.equal(bearer(stream), 'Bearer token-2');
    stream.open().state(10).send('close', { reason: 'expired', retry_ms: 1 });
    stream = await gateway.stream();
    assert.deepEqual([bearer(stream), stream.query.get('last_event_id')], ['Bearer token-3', cursor(10)]);
    stream.problem(401, 'unauthorized');
    (await gateway.stream()).problem(401, 'unauthorized');
    // It was valid before, so another one may come.
    stream = await gateway.stream();
    assert.deepEqual([mirror.state, mirror.problem.code, number], ['disconnected', 'unauthorized', 5]);
    const now = performance.now();
    mock.method(performance, 'now', () => now + 151_000);
    stream.problem(401, 'unauthorized');
    (await gateway.stream()).problem(401, 'unauthorized');
    await turns(mirror, 'failed');
  });

  test('a gateway whose clock is wrong does not make a refusal final', async () => {
    const mirror = follow({ token: () => 'late' });
    const since = new Date(Date.now() - 3_600_000).toISOString();
    const stream = (await gateway.stream()).open().state(10);
    stream.send('status', { state: 'stale', since, ranges: [] }).send('close', { reason: 'expired', retry_ms: 1 });
    for (let time = 0; time < 2; time++) (await gateway.stream()).problem(401, 'unauthorized');
    (await gateway.stream()).open().state(11);
    await mirror.synced();
  });

  test('before a token ends, the mirror continues with the next one', async () => {
    let [token, asked] = ['old', 0];
    const mirror = follow({ token: () => { asked++; if (asked === 2) throw new Error('away'); return token; } });
    const reasons = [];
    mirror.addEventListener('state', () => reasons.push(mirror.reason));
    const stream = (await gateway.stream()).open().state(10);
    await mirror.synced();
    const expires = new Date(Date.now() + 30_000).toISOString();
    for (let time = 0; time < 2; time++) stream.send('status', { state: 'live', expires, ranges: [] });
    await until(() => asked === 3); // the issuer was away, then it gave the same token
    assert.equal(mirror.state, 'live');
    token = 'new';
    const next = await gateway.stream();
    assert.deepEqual([bearer(next), next.query.get('last_event_id')], ['Bearer new', cursor(10)]);
    assert.equal(reasons.at(-1), 'the token is renewed');
    next.open().synced(10);
    await mirror.synced();
    assert.deepEqual([mirror.expires, gateway.waiting], [null, 0]);
  });

  test('a mirror that is opened again while the file for tokens is loaded asks once', async () => {
    let asked = 0;
    const mirror = follow({ token: () => `token-${++asked}` });
    for (let time = 0; time < 3; time++) mirror.reconnect();
    const stream = (await gateway.stream()).open().state(10);
    await mirror.synced();
    assert.deepEqual([bearer(stream), asked, gateway.waiting], ['Bearer token-1', 1, 0]);
    const reasons = new Set();
    mirror.addEventListener('state', () => reasons.add(mirror.reason));
    stream.send('status', { state: 'live', expires: new Date(Date.now() + 30_000).toISOString(), ranges: [] });
    const next = await gateway.stream();
    assert.deepEqual([bearer(next), asked], ['Bearer token-3', 3]); // the second one told that there is another
    next.open().synced(10);
    await mirror.synced();
    assert.deepEqual([...reasons], [null, 'the token is renewed']);
  });

  test('a function that takes its time is no silence of the gateway, and is asked again after a minute', async () => {
    const ticks = [];
    mock.method(globalThis, 'setInterval', (work) => { ticks.push(work); return 0; });
    const start = Date.now();
    const pass = (seconds) => {
      mock.method(Date, 'now', () => start + 1000 * seconds);
      ticks.at(-1)();
    };
    const answers = [];
    const mirror = follow({ token: () => new Promise((answer) => answers.push(answer)) });
    await until(() => answers.length === 1);
    pass(55);
    assert.deepEqual([mirror.state, answers.length], ['connecting', 1]);
    answers[0]('late');
    assert.equal(bearer(await gateway.stream()), 'Bearer late');
    pass(64);
    assert.equal(mirror.state, 'connecting');
    pass(66); // the gateway itself has 10 s
    assert.deepEqual([mirror.state, mirror.reason], ['disconnected', 'silent']);
    await until(() => answers.length === 2);
    pass(127);
    assert.deepEqual([mirror.state, mirror.reason], ['disconnected', 'silent']);
    await until(() => answers.length === 3);
    answers[1]('of a try that is over');
    answers[2]('in-time');
    const stream = (await gateway.stream()).open().state(10);
    assert.equal(bearer(stream), 'Bearer in-time');
    await mirror.synced();
  });

  test('at the start, two refusals are a mistake', async () => {
    const mirror = follow({ token: () => 'wrong' });
    (await gateway.stream()).problem(401, 'unauthorized');
    (await gateway.stream()).problem(401, 'unauthorized');
    await turns(mirror, 'failed');
  });

  test('a token that is text is refused once', async () => {
    const mirror = follow({ token: 'wrong' });
    (await gateway.stream()).problem(401, 'unauthorized');
    await turns(mirror, 'failed');
    assert.equal(gateway.waiting, 0);
  });

  test('no token: no header; an issuer that is away: the reason', async () => {
    follow({ token: () => null });
    assert.equal(bearer(await gateway.stream()), undefined);
    let away = true;
    const mirror = follow({ token: () => { if (away) throw new Error('the issuer is away'); return 'good'; } });
    await turns(mirror, 'disconnected');
    assert.equal(mirror.reason, 'no answer: the issuer is away');
    away = false;
    assert.equal(bearer(await gateway.stream()), 'Bearer good');
  });

  test('a token that no header can have is named without showing it', async () => {
    const mirror = follow({ token: 'sec\nret' });
    await turns(mirror, 'failed');
    assert.equal(mirror.reason, 'the token is not one that a header can have');
  });
});
