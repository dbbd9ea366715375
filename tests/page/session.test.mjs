import assert from 'node:assert/strict';
import test from 'node:test';

import { Session } from '../../app/page/session.js';

Math.random = () => 0; // the shortest delay before a next try

const STATE = [
  { type: 'reset', reason: 'initial' }, { type: 'put', key: '/a', value: 'secret', mod_revision: 3 },
  { type: 'synced', revision: 3, heartbeat: 15 },
];
const answer = (events) => new Response(`\n${events.map((event) => `${JSON.stringify(event)}\n`).join('')}`, {
  headers: { 'content-type': 'application/x-ndjson' },
});
const refusal = (status) => Response.json({ status, code: 'no', title: 'No', detail: '' }, {
  status, headers: { 'content-type': 'application/problem+json' },
});

/** What a session says of the answers that the gateway gives, one after the other, until it is in this state. */
async function told(answers, last) {
  globalThis.fetch = async () => answers.shift();
  const said = [];
  let session = null, end;
  const ended = new Promise((done) => { end = done; });
  const say = (what) => () => {
    said.push(what);
    if (session?.mirror.state === last) end();
  };
  session = new Session('http://gateway/', [{ kind: 'prefix', name: '' }], { onchange: say('change'), onrevoked: say('revoked') });
  await ended;
  const held = session.entries.size;
  session.close();
  return { held, revoked: said.filter((what) => what === 'revoked').length };
}

test('that what is shown may no longer be read is told with the event: a tab in the background draws nothing', async () => {
  const revoked = [answer([...STATE, { type: 'close', reason: 'revoked', retry_ms: 0 }])];
  assert.deepEqual(await told(revoked, 'disconnected'), { held: 1, revoked: 1 });
  assert.deepEqual(await told([answer(STATE), refusal(403)], 'failed'), { held: 1, revoked: 1 });
});

test('the entries before the changes are bounded by their characters', async () => {
  const stream = (...keys) => keys.map((key, at) => ({ type: 'put', key, value: String(at), mod_revision: at + 1 }));
  const keys = Array.from({ length: 60 }, (_, at) => `/${at}`);
  globalThis.fetch = async () => answer([STATE[0], ...stream(...keys), { type: 'synced', revision: 90, heartbeat: 15 }]);
  const session = new Session('http://gateway/', [{ kind: 'prefix', name: '' }], { onchange() {}, onrevoked() {} });
  await session.mirror.synced();
  const large = 'x'.repeat(1_000_000), change = (key, previous) => ({ type: 'delete', key, previous });
  session.mirror.dispatchEvent(new CustomEvent('changes', { detail: {
    revision: 91, changes: keys.map((key) => change(key, { value: large })),
  } }));
  assert.deepEqual([session.previous.size, session.previous.has('/9'), session.previous.has('/10')], [50, false, true]);
  session.mirror.dispatchEvent(new CustomEvent('changes', { detail: {
    revision: 92, changes: keys.map((key) => change(key, { value: 'small' })),
  } }));
  assert.equal(session.previous.size, 60);
  session.close();
});

test('a refusal before there is anything to show, and a token that has ended, are no such news', async () => {
  assert.deepEqual(await told([refusal(403)], 'failed'), { held: 0, revoked: 0 });
  const expired = [answer([...STATE, { type: 'close', reason: 'expired', retry_ms: 0 }]), refusal(401)];
  assert.deepEqual(await told(expired, 'failed'), { held: 1, revoked: 0 });
});
