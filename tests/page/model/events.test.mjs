import assert from 'node:assert/strict';
import test from 'node:test';

import { Members } from '../../../app/page/model/columns.js';
import { Events } from '../../../app/page/model/events.js';

const put = (key, value, more = {}) => ({ type: 'put', key, entry: { value, version: 1, ...more } });
const log = () => new Events(new Members().of);
const keys = (events) => events.shown.map(({ key }) => key).join('');

test('the newest first; the events of a revision stand together', () => {
  const events = log();
  events.add(1, 10, [put('a', '1')]);
  events.add(2, 11, [put('b', '1'), { type: 'delete', key: 'a', previous: { value: '1' } }, put('c', '1')]);
  assert.equal(keys(events), 'caba');
  assert.deepEqual(events.shown.map(({ first, last, of }) => [first, last, of]), [[false, true, 3], [false, false, 3], [true, false, 3], [true, true, 1]]);
});

test('a pause holds what is shown, and counts what comes', () => {
  const events = log();
  events.add(1, 10, [put('a', '1')]);
  assert.deepEqual([events.paused, events.waiting], [false, 0]);
  events.paused = true;
  assert.deepEqual([events.paused, events.waiting, keys(events)], [true, 0, 'a']);
  for (let n = 0; n < 6000; n++) events.add(n, 11 + n, [put('b', '2')]);
  assert.equal(keys(events), 'a');
  assert.ok(events.waiting >= 5000);
  events.paused = false;
  assert.equal(events.shown[0].key, 'b');
});

test('a filter looks at keys, values, types and members', () => {
  const events = log();
  events.add(1, 10, [put('/api', '{"zone":"b"}'), put('/mail', 'x')]);
  events.add(2, 11, [{ type: 'delete', key: '/api', previous: { value: '{"zone":"b"}' } }]);
  for (const [filter, n] of [['api', 2], ['delete', 1], ['zone:b', 2], ['-api', 1], ['nothing', 0], ['', 3]]) {
    events.filter = filter;
    assert.equal(events.shown.length, n, filter);
  }
});

test('old events are dropped, and counted', () => {
  const events = log();
  for (let n = 0; n < 12_000; n++) events.add(n, n, [put('a', '1')]);
  assert.equal(events.list.length + events.dropped, 12_000);
  assert.ok(events.list.length <= 5500);
  events.clear();
  assert.deepEqual([events.list.length, events.dropped, events.shown.length], [0, 0, 0]);
});

test('large values are bounded by their characters', () => {
  const events = log(), large = 'x'.repeat(1_000_000); // one string: this test needs no memory for a hundred
  for (let n = 0; n < 100; n++) events.add(n, n, [put('a', large), { type: 'delete', key: 'b', previous: { valueBase64: large } }]);
  assert.deepEqual([events.list.length, events.dropped, events.list[0].revision], [50, 150, 75]);
  events.clear();
  for (let n = 0; n < 50; n++) events.add(n, n, [{ ...put('a', large), previous: { value: large } }]);
  assert.deepEqual([events.list.length, events.dropped, events.list[0].previous], [50, 0, undefined]);
});

test('the export is NDJSON with the names of the stream, the oldest first', () => {
  const events = log();
  events.add(0, 10, [put('a', '1', { version: 3 })]);
  events.add(1000, 11, [put('b', null, { valueBase64: '/w==' }), { type: 'delete', key: 'a', previous: { value: '1' } }]);
  assert.deepEqual(events.export().trim().split('\n').map((line) => JSON.parse(line)), [
    { time: '1970-01-01T00:00:00.000Z', type: 'put', key: 'a', mod_revision: 10, value: '1', version: 3 },
    { time: '1970-01-01T00:00:01.000Z', type: 'put', key: 'b', mod_revision: 11, value: '/w==', version: 1, encoding: 'base64' },
    { time: '1970-01-01T00:00:01.000Z', type: 'delete', key: 'a', mod_revision: 11 },
  ]);
});

test('what a reset has changed is no transaction: each put has its own revision', () => {
  const events = log();
  events.add(1, 20, [{ type: 'delete', key: 'a', previous: { value: '1' } }, put('b', '2', { modRevision: 17 })], 'lagged');
  assert.deepEqual(events.shown.map(({ key, revision, reset }) => [key, revision, reset]), [['b', 17, 'lagged'], ['a', 20, 'lagged']]);
});
