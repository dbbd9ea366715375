import assert from 'node:assert/strict';
import test from 'node:test';

import { diffLines, folded } from '../../../app/page/model/diff.js';

const random = (seed) => () => (seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648;

/** The length of the longest common subsequence, by the table: slow, and certainly right. */
function common(a, b) {
  const table = Array.from({ length: a.length + 1 }, () => new Array(b.length + 1).fill(0));
  a.forEach((x, i) => b.forEach((y, j) => { table[i + 1][j + 1] = x === y ? table[i][j] + 1 : Math.max(table[i][j + 1], table[i + 1][j]); }));
  return table[a.length][b.length];
}

test('the difference gives both texts, and has the fewest changes', () => {
  const draw = random(5), text = () => Array.from({ length: Math.floor(draw() * 12) }, () => 'abcd'[Math.floor(draw() * 4)]);
  for (let turn = 0; turn < 2000; turn++) {
    const [a, b] = [text(), text()], lines = diffLines(a, b), only = (...kinds) => lines.filter(({ kind }) => kinds.includes(kind)).map((line) => line.text);
    assert.deepEqual(only('same', 'removed'), a);
    assert.deepEqual(only('same', 'added'), b);
    assert.equal(only('same').length, common(a, b));
  }
});

test('two long texts without a common line end soon, as one replaced by the other', () => {
  const lines = diffLines(Array.from({ length: 5000 }, (_, n) => `a${n}`), Array.from({ length: 5000 }, (_, n) => `b${n}`));
  assert.equal(lines.length, 10_000);
});

test('equal lines far from a change are left out, and counted', () => {
  const lines = [...'aaaaaaaaaa'].map((text) => ({ kind: 'same', text }));
  lines.splice(5, 0, { kind: 'added', text: 'new' });
  assert.deepEqual(folded(lines, 2).map(({ kind, count }) => count ?? kind), [3, 'same', 'same', 'added', 'same', 'same', 3]);
  assert.deepEqual(folded([]), []);
});
