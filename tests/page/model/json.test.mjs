import assert from 'node:assert/strict';
import test from 'node:test';

import { layOut, linesOf, lineText, membersOf, tokensOf } from '../../../app/page/model/json.js';

test('a value is laid out as JSON.stringify would, but with the numbers as they were written', () => {
  for (const value of [null, 0, '', [], {}, [[]], [{}], { a: {} }, { a: [1, { b: null }, 'x,y:{"'] }, 'ü "\\ \n', [1.5e300, -0.25, true]])
    assert.equal(layOut(JSON.stringify(value)), JSON.stringify(value, null, 2));
  assert.equal(layOut('{"a":12345678901234567890,"b":1.0,"a":2}'), '{\n  "a": 12345678901234567890,\n  "b": 1.0,\n  "a": 2\n}');
  assert.equal(layOut(' [ 1 ,\n2 ] '), '[\n  1,\n  2\n]');
});

test('what is not JSON stays as it is', () => {
  for (const text of ['', 'plain', '{"a":1', "{'a':1}", '{"a":1}x', 'NaN']) {
    assert.equal(layOut(text), text);
    assert.equal(tokensOf(text), null);
    assert.equal(linesOf(text), null);
  }
});

test('names, strings, numbers and words are told apart', () => {
  const kinds = linesOf('{"a":"b","c":[1,true]}').flatMap(({ tokens }) => tokens).filter(({ kind }) => kind !== 'mark');
  assert.deepEqual(kinds.map(({ kind, text }) => `${kind} ${text}`), ['name "a"', 'string "b"', 'name "c"', 'number 1', 'word true']);
  assert.equal(lineText({ depth: 2, tokens: [{ text: 'x' }] }), '    x');
});

test('the members of an object', () => {
  const members = membersOf('{"a":9007199254740993,"s":"q\\n","o":{"p":{"q":1},"r":null},"e":{},"l":[1,{"x":2}],"s":"last"}');
  assert.deepEqual([...members].map(([path, { kind, text }]) => [path, kind, text]), [
    ['a', 'number', '9007199254740993'], ['s', 'string', 'last'], ['o.p', 'part', '{"q":1}'], ['o.r', 'word', 'null'],
    ['e', 'part', '{}'], ['l', 'part', '[1,{"x":2}]'],
  ]);
  assert.deepEqual([...membersOf('{"o":{"p":1}}', 1)], [['o', { kind: 'part', text: '{"p":1}' }]]);
  for (const text of ['', '[1]', '"{"', '{', '{}x', '7']) assert.equal(membersOf(text), null);
  assert.equal(membersOf(' {}').size, 0);
});
