import assert from 'node:assert/strict';
import test from 'node:test';

import { Gateway, Probe, SharingFeed } from '../../app/page/gateway.js';

globalThis.document = { hidden: false };

test('an answer to another token is not shown, and does not keep the page from asking again', async () => {
  const asked = [];
  const feed = new SharingFeed({ ask: () => new Promise((answer) => asked.push(answer)) }, true);
  for (const late of [{ status: 401, body: { title: 'No' } }, { status: 200, body: { feeds: [] } }]) {
    const tick = feed.tick(Date.now());
    feed.forget();
    asked.pop()(late);
    assert.deepEqual([await tick, feed.answer, feed.problem], [false, null, null]);
  }
  const next = feed.tick(Date.now());
  asked.pop()({ status: 200, body: { feeds: [1] } });
  assert.deepEqual([await next, feed.answer], [true, { feeds: [1] }]);
});

test('how long etcd is away is counted by one clock: that of the browser may be another than that of the gateway', async (t) => {
  const NOW = 1_000_000_000_000, GATEWAY = NOW - 3_600_000; // the browser is an hour ahead
  const probe = new Probe('http://gateway/', true);
  const asked = async (now, away, headers) => {
    const etcd = { state: 'down', since: new Date(away).toISOString() };
    t.mock.method(globalThis, 'fetch', async () => Response.json({ etcd }, { headers }));
    await probe.tick(now, { live: false });
    return now - probe.etcd.began;
  };
  const date = (time) => ({ date: new Date(time).toUTCString() });
  assert.equal(await asked(NOW, GATEWAY - 16_000, date(GATEWAY)), 16_000);
  assert.equal(await asked(NOW + 2500, GATEWAY - 16_000, date(GATEWAY + 2500)), 18_500); // a date has no milliseconds
  assert.equal(await asked(NOW + 9000, GATEWAY + 8000, {}), 0);
  assert.equal(await asked(NOW + 12_000, GATEWAY + 8000, {}), 3000);
  assert.equal(await asked(NOW + 15_000, GATEWAY + 15_000, date(GATEWAY + 14_000)), 0);
});

test('an answer says how far the clock of the browser is ahead', async (t) => {
  const gateway = new Gateway('http://gateway/'), NOW = 1_000_000_000_000;
  t.mock.method(Date, 'now', () => NOW);
  const answers = [{ date: new Date(NOW - 3_600_000).toUTCString() }, {}];
  t.mock.method(globalThis, 'fetch', async () => Response.json({}, { headers: answers.shift() }));
  for (const ahead of [3_600_000, 3_600_000]) {
    await gateway.ask('v1/access');
    assert.equal(gateway.ahead, ahead);
  }
});

test('what may be read is asked until there is an answer, or until nobody waits for it', async (t) => {
  const gateway = new Gateway('http://gateway/'), pauses = [];
  t.mock.method(globalThis, 'setTimeout', (again, ms) => { pauses.push(ms); again(); });
  const access = (statuses, wanted = () => true) => {
    gateway.ask = async () => ({ status: statuses.shift(), body: { keys_only: ['prefix='] } });
    return gateway.access(wanted);
  };
  assert.deepEqual([await access([0, 429, 503, 200]), pauses.length], [{ keys_only: ['prefix='] }, 3]);
  assert.ok(pauses.every((ms) => ms >= 1000));
  const left = [503, 200];
  assert.deepEqual([await access(left, () => false), left], [null, [200]]);
  const { document: before } = globalThis;
  globalThis.document = { hidden: true };
  t.after(() => { globalThis.document = before; });
  const background = [503, 200], seen = pauses.length;
  const shown = () => { if (pauses.length === seen + 4) document.hidden = false; return background.length === 1; };
  assert.deepEqual([await access(background, shown), pauses.length - seen], [{ keys_only: ['prefix='] }, 4]);
  assert.equal(await access([403]), null);
});

test('a refusal stays one until there is another token', async () => {
  const asked = [];
  const feed = new SharingFeed({ ask: async (path) => { asked.push(path); return { status: 403, body: { title: 'No' } }; } }, true);
  await feed.tick(Date.now());
  feed.soon();
  assert.equal(await feed.tick(Date.now() + 60_000), false);
  assert.deepEqual([feed.problem, asked.length], [{ status: 403, title: 'No' }, 1]);
  feed.forget();
  assert.equal(await feed.tick(Date.now()), true);
});
