import assert from 'node:assert/strict';
import test from 'node:test';

import { chosenFor, compareCells, fieldsOf, Members, sampleOf } from '../../../app/page/model/columns.js';

const members = new Members().of;
const entries = (...values) => new Map(values.map((value, at) => [`k${at}`, { key: `k${at}`, value }]));

test('members that most values have become columns, the most frequent first', () => {
  const fields = fieldsOf([...entries('{"a":1,"b":"xyz"}', '{"a":22}', '{"a":3,"c":1}', 'text').values()], members);
  assert.deepEqual(fields.map(({ field, share, width }) => [field, share, width]), [['a', 0.75, 2], ['b', 0.25, 3], ['c', 0.25, 1]]);
  assert.deepEqual(chosenFor(fields), ['a']);
  assert.deepEqual(chosenFor(Array.from({ length: 9 }, (_, n) => ({ field: `f${n}`, share: 1 }))).length, 4);
  assert.deepEqual(fieldsOf([], members), []);
});

test('a sample is spread over all entries', () => {
  const many = entries(...Array.from({ length: 1000 }, () => '1')), sample = sampleOf(many, 100);
  assert.equal(sample.length, 100);
  assert.deepEqual([sample[0].key, sample.at(-1).key], ['k0', 'k990']);
  assert.equal(sampleOf(entries('1', '2'), 100).length, 2);
});

test('members are read once for each entry', () => {
  const entry = { value: '{"a":1}' };
  assert.equal(members(entry), members(entry));
  assert.equal(members({ value: null }), null);
});

test('cells are compared as what they are', () => {
  const number = (text) => ({ kind: 'number', text }), string = (text) => ({ kind: 'string', text });
  assert.ok(compareCells(number('9'), number('10')) < 0);
  assert.ok(compareCells(string('9'), string('10')) > 0);
  assert.ok(compareCells(undefined, number('1')) > 0);
  assert.ok(compareCells(number('1'), undefined) < 0);
  assert.equal(compareCells(undefined, undefined), 0);
});
