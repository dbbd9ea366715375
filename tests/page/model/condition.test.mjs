import assert from 'node:assert/strict';
import test from 'node:test';

import { bannerOf, explain, mustDrop } from '../../../app/page/model/condition.js';

const NOW = 1_000_000;
const client = (state, more = {}) => ({ state, reason: '', problem: null, retryAt: 0, synced: true, ...more });
const banner = (one, more = {}) => bannerOf({ client: one, currentAt: NOW - 7000, startedAt: NOW - 60_000, now: NOW, ...more });

test('live is no banner; so is the moment of a start', () => {
  assert.equal(banner(client('live')), null);
  assert.equal(banner(client('connecting', { synced: false }), { startedAt: NOW - 400 }), null);
  assert.notEqual(banner(client('connecting', { synced: false }), { startedAt: NOW - 1600 }), null);
});

test('a broken connection says why, how old the state is, and when the next try is', () => {
  assert.deepEqual(banner(client('disconnected', { reason: 'disconnected', retryAt: NOW + 3200 })), {
    level: 'error', title: 'Not connected', detail: 'The connection to the gateway is broken.',
    age: 'What you see is 7 s old.', next: 'Next try in 4 s.',
  });
  assert.equal(banner(client('disconnected')).next, 'Trying now.');
  assert.equal(banner(client('disconnected', { synced: false })).age, 'There is nothing to show yet.');
});

test('etcd away is the cause, for a live stream and for a new tab', () => {
  const etcd = { state: 'down', began: NOW - 16_000, reason: 'no answer within 2 s' };
  for (const state of ['live', 'stale', 'syncing', 'connecting']) {
    const { level, title, detail, age } = banner(client(state), { etcd, startedAt: NOW });
    assert.deepEqual([level, title, detail, age], ['stale', 'etcd is out of reach', 'No answer within 2 s.', 'For 16 s. What you see is 16 s old.']);
  }
  assert.equal(banner(client('live'), { etcd: { state: 'ready' } }), null);
});

test('while the gateway or etcd is away, the countdown is that of the stream or of the next probe', () => {
  const etcd = { state: 'down', began: NOW - 2000, reason: '' };
  const nextOf = (one, more) => banner(one, { nextProbe: NOW + 1400, ...more }).next;
  assert.equal(nextOf(client('stale'), { etcd }), 'The page asks again in 2 s.');
  assert.equal(nextOf(client('live'), { silentFor: 2500 }), 'The page asks again in 2 s.');
  assert.equal(nextOf(client('stale'), { etcd, nextProbe: NOW - 1 }), 'The page asks again now.');
  assert.equal(nextOf(client('disconnected', { retryAt: NOW + 3200 }), { etcd }), 'Next try in 4 s.');
  assert.equal(nextOf(client('stale', { reason: 'this client is behind' }), {}), '');
});

test('of the reason why etcd is away, what people understand is shown', () => {
  const detailOf = (reason) => banner(client('stale'), { etcd: { state: 'down', began: NOW, reason } }).detail;
  const connect = 'Failed to connect to remote host: Connection refused';
  assert.equal(detailOf(`unavailable: failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.7:2379: ${connect}`), 'Connection refused.');
  assert.equal(detailOf('deadline_exceeded: no answer within 2 s'), 'No answer within 2 s.');
  assert.equal(detailOf('unauthenticated: etcdserver: invalid auth token'), 'etcdserver: invalid auth token.');
  assert.equal(detailOf(''), '');
});

test('a gateway that answers nothing is the cause', () => {
  const { title, age } = banner(client('live'), { silentFor: 4000 });
  assert.deepEqual([title, age], ['The gateway does not answer', 'For 4 s. What you see is 7 s old.']);
});

test('a refusal is final; a problem that passes is not', () => {
  const problem = { status: 403, title: 'Forbidden', detail: 'prefix=/x may not be read' };
  const { level, title, detail, next } = banner(client('failed', { problem }));
  assert.deepEqual([level, title, detail, next], ['error', 'Forbidden', 'prefix=/x may not be read', '']);
  const away = banner(client('disconnected', { problem: { status: 503, title: 'Unavailable', detail: 'etcd' }, retryAt: NOW + 1 }));
  assert.deepEqual([away.title, away.detail, away.next], ['Not connected', 'etcd', 'Next try in 1 s.']);
});

test('reasons are sentences', () => {
  assert.equal(explain('revoked'), 'You may no longer read this.');
  assert.equal(explain('something new: x'), 'Something new: x');
  assert.equal(explain(''), '');
  assert.equal(banner(client('stale', { reason: 'this client is behind' })).detail, 'This client is behind');
});

test('while nothing is followed, only what concerns everybody is said', () => {
  const etcd = { state: 'down', began: NOW - 2000, reason: 'refused' };
  assert.equal(bannerOf({ client: null, etcd: { state: 'ready' }, now: NOW }), null);
  assert.equal(bannerOf({ client: null, now: NOW }), null);
  assert.deepEqual(bannerOf({ client: null, etcd, now: NOW }), { level: 'stale', title: 'etcd is out of reach', detail: 'refused.', age: 'For 2 s.', next: 'The page asks again now.' });
  assert.equal(explain('etcd is out of reach, or this client is behind'), 'etcd is out of reach, or this client is behind');
});

test('a mirror that shares the connection of all tabs is stale when that connection is broken', () => {
  const { title, detail, next } = banner(client('stale', { reason: 'no answer: network error', retryAt: NOW + 2000 }));
  assert.deepEqual([title, detail, next], ['Not connected', 'The gateway does not answer.', 'Next try in 2 s.']);
});

test('what may no longer be read is dropped; a token that has ended is not the end', () => {
  assert.ok(mustDrop({ state: 'stale', reason: 'revoked', problem: null }));
  assert.ok(mustDrop({ state: 'failed', reason: 'HTTP 403 forbidden: x', problem: { status: 403 } }));
  for (const one of [{ state: 'stale', reason: 'expired' }, { state: 'failed', reason: 'HTTP 401', problem: { status: 401 } }, { state: 'live', reason: null, problem: null }])
    assert.ok(!mustDrop(one));
  const { title, detail } = banner(client('stale', { reason: 'expired' }));
  assert.deepEqual([title, detail], ['Not connected', 'The token has ended. Enter a new one.']);
  assert.equal(banner(client('failed', { problem: { status: 401, title: 'Unauthorized', detail: 'a token is needed' } })).detail, 'A token is needed');
});
