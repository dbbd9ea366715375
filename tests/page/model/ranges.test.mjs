import assert from 'node:assert/strict';
import test from 'node:test';

import * as ranges from '../../../app/page/model/ranges.js';

const prefix = (name) => ({ kind: 'prefix', name }), key = (name) => ({ kind: 'key', name });

test('an address is read as it is written', () => {
  for (const list of [[prefix('/svc/')], [prefix('')], [prefix('/a b+c/'), key("it's $(x) `y` \"z\" & ; [1-2] {a,b} é%20+\n!!")], [key('\udcff\udc80A'), prefix('😀')]])
    for (const mark of ['', '#', '?']) assert.deepEqual(ranges.read(mark + ranges.query(list)), list);
});

test('what others write into an address', () => {
  assert.deepEqual(ranges.read('?prefix=%2Fsvc%2F&_=1&key=&prefix=/svc/&prefix'), [prefix('/svc/')]);
  assert.deepEqual(ranges.read('#key=a+b&prefix=%FF%41'), [key('a b'), prefix('\udcffA')]);
  assert.deepEqual(ranges.read('prefix=100%'), [prefix('100%')]);
  assert.deepEqual(ranges.read(''), []);
});

test('what a user types', () => {
  assert.deepEqual(['/svc/', 'key=/leader', 'prefix=/a', 'key=', ''].map(ranges.typed), [prefix('/svc/'), key('/leader'), prefix('/a'), prefix('key='), prefix('')]);
});

test('names for people', () => {
  assert.deepEqual([prefix(''), prefix('/a\n'), key('\udcff')].map(ranges.label), ['every key', '/a␊', 'key \\xff']);
});

test('names that are copied', () => {
  assert.deepEqual(['/a\n', '/ü', '\udcff/ü'].map(ranges.copied), ['/a\n', '/ü', '%ff/%C3%BC']);
});

test('what the gateway makes of ranges', () => {
  assert.deepEqual(ranges.outermost([prefix('/b'), key('/b/1'), key('/a'), prefix('/a'), prefix('/a/1')]), [prefix('/b'), prefix('/a')]);
  assert.deepEqual(ranges.outermost([key('/b'), key('/a')]), [key('/b'), key('/a')]);
  assert.deepEqual(ranges.parse('prefix=/a%20b'), prefix('/a b'));
  assert.deepEqual(ranges.forClient(key('/a')), { key: '/a' });
});

test('a command for a shell has no character that the shell would change', () => {
  const command = ranges.curlWatch('http://h/gw/', [prefix("it's [1-2]"), key('{a}')], { token: true, keysOnly: true });
  assert.equal(command, `curl -N -H "Authorization: Bearer $TOKEN" 'http://h/gw/v1/watch?prefix=it%27s%20%5B1-2%5D&key=%7Ba%7D&keys_only=1'`);
  assert.equal(ranges.curlKey('http://h/', '\udcff/ü'), "curl -s 'http://h/v1/kv?key=%ff/%C3%BC'");
});
