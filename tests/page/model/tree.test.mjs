import assert from 'node:assert/strict';
import test from 'node:test';

import { Tree, topFolders } from '../../../app/page/model/tree.js';

const prefix = (name) => ({ kind: 'prefix', name });
const grown = (roots, ...keys) => { const tree = new Tree(roots); keys.forEach((key) => tree.add(key)); return tree; };
const drawn = (tree, ...open) => tree.rows(new Set(open)).map(({ label, level, count, open: is }) => `${'  '.repeat(level)}${is === null ? '' : is ? 'v ' : '> '}${label} ${count}`);

test('folders by "/", with counts', () => {
  const tree = grown([prefix('/svc/')], '/svc/api/a', '/svc/api/b', '/svc/mail/a', '/svc/alone');
  assert.deepEqual(drawn(tree), ['> /svc/ 4']);
  assert.deepEqual(drawn(tree, '/svc/'), ['v /svc/ 4', '  api/ 2', '  mail/ 1']);
  tree.remove('/svc/mail/a');
  assert.deepEqual(drawn(tree, '/svc/'), ['v /svc/ 3', '  api/ 2']);
  tree.remove('/svc/other/never'); // was never added: nothing below its folder changes
  assert.equal(tree.rows(new Set()).length, 1);
});

test('a chain of folders is one row, unless a key lies beside', () => {
  const keys = ['/a/b/c/1', '/a/b/c/2', '/a/x/1'];
  assert.deepEqual(drawn(grown([prefix('/')], ...keys), '/', '/a/'), ['v / 3', '  v a/ 3', '    b/c/ 2', '    x/ 1']);
  assert.deepEqual(drawn(grown([prefix('/')], ...keys, '/a/b/1'), '/', '/a/', '/a/b/'), ['v / 4', '  v a/ 4', '    v b/ 3', '      c/ 2', '    x/ 1']);
});

test('the first folder of a key keeps its leading slash', () => {
  assert.deepEqual(drawn(grown([prefix('')], '/svc/a', 'plain', 'a/b', '//c'), ''), ['v  4', '  // 1', '  /svc/ 1', '  a/ 1']);
});

test('several ranges, and a range that is a part of a name', () => {
  const tree = grown([prefix('/sv'), { kind: 'key', name: '/leader' }], '/svc/a', '/svx', '/leader');
  assert.deepEqual(drawn(tree, '/sv'), ['v /sv 2', '  c/ 1', '/leader 1']);
  assert.deepEqual(tree.paths('/svc/a'), ['/sv', '/svc/']);
  assert.deepEqual(tree.paths('elsewhere'), []);
});

test('the folders at the top of a list of keys, in its order', () => {
  const list = ['/jobs/1/a', '/jobs/2', '/svc/a', 'plain', 'z/1', 'z/2'].map((key) => ({ key }));
  assert.deepEqual([...topFolders([...list, { key: 'YS8=', key_encoding: 'base64' }])], [['/jobs/', 2], ['/svc/', 1], ['z/', 2]]);
});
