import assert from 'node:assert/strict';
import test from 'node:test';

import { Gateway, SharingFeed } from '../../app/page/gateway.js';

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
