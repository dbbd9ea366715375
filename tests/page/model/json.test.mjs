import assert from 'node:assert/strict';
import test from 'node:test';

import { Lines, linesOf, lineText, membersOf, tokensOf } from '../../../app/page/model/json.js';

const layOut = (value) => new Lines().laidOut({ value }).join('\n');

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

test('the lines of a value are read once, and those of the value before it, too', (t) => {
  const lines = new Lines(), [first, second, third] = ['[1]', '[2]', '[3]'].map((value) => ({ value }));
  const { mock } = t.mock.method(JSON, 'parse');
  for (const [before, entry] of [[first, second], [second, third]])
    for (let draw = 0; draw < 9; draw++) assert.deepEqual([entry, before, entry].map((one) => lines.laidOut(one)[1]), [entry, before, entry].map(({ value }) => `  ${value[1]}`));
  assert.deepEqual(mock.calls.map(({ arguments: [text] }) => text), ['[2]', '[1]', '[3]']);
});

test('a value may be as deep as its writer wants', () => {
  const deep = 20_000, lines = layOut('['.repeat(deep) + ']'.repeat(deep)).split('\n');
  assert.equal(lines.length, 2 * deep - 1);
  assert.ok(Math.max(...new Set(lines.map((line) => line.length))) < 200);
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
