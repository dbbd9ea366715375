import assert from 'node:assert/strict';
import test from 'node:test';

import { Members } from '../../../app/page/model/columns.js';
import { compile, onlyKeys } from '../../../app/page/model/filter.js';

const members = new Members().of;
const entry = { key: '/svc/API/a', value: '{"zone":"b","load":71,"note":"two words"}' };
const matches = (filter) => compile(filter)(entry, members);

test('all words must match', () => {
  for (const yes of ['api', 'API 71', 'key:svc', 'value:"two words"', 'zone:b', 'zone:b load:7', '-mail', '"two words"', '-zone:a', 'nothing:  api'])
    assert.equal(matches(yes), yes !== 'nothing:  api', yes);
  for (const no of ['mail', 'api mail', 'key:71', 'value:svc', 'zone:a', 'load:8', '-api', '-zone:b', 'absent:x'])
    assert.equal(matches(no), false, no);
});

test('a word with a colon also finds such a key', () => {
  assert.equal(compile('10.0.0.1:80')({ key: '/at/10.0.0.1:8080', value: '' }, members), true);
});

test('a filter of no words is none; a value that is no text is no match', () => {
  assert.deepEqual([compile(''), compile('  ')], [null, null]);
  assert.equal(compile('value:a')({ key: 'a', value: null, valueBase64: 'YQ==' }, members), false);
});

test('whether values matter', () => {
  assert.deepEqual(['', 'key:a', 'key:a -key:b', 'a', 'key:a zone:b'].map(onlyKeys), [true, true, true, false, false]);
});
