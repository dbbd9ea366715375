import assert from 'node:assert/strict';
import test from 'node:test';

import { Members } from '../../../app/page/model/columns.js';
import { Rows } from '../../../app/page/model/rows.js';

const random = (seed) => () => (seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648;

test('after any changes the rows are what a new table would show', () => {
  const draw = random(3), below = (n) => Math.floor(draw() * n), entries = new Map();
  const settings = [
    {}, { filter: 'key:1' }, { filter: '"n":5' }, { scope: '/a/' }, { sort: { by: 'key', down: true } }, { filter: 'key:1', sort: { by: 'key', down: true } },
    { sort: { by: 'field', field: 'n', down: false } }, { sort: { by: 'revision', down: true } }, { scope: '/b/', filter: '-n:1', sort: { by: 'field', field: 'n', down: true } },
  ];
  for (const chosen of settings) {
    const make = () => Object.assign(new Rows(new Members().of), chosen), rows = make();
    entries.clear();
    for (let turn = 1; turn < 300; turn++) {
      const ids = new Set(Array.from({ length: turn % 50 ? below(4) : 200 }, () => `/${'ab'[below(2)]}/${below(90)}`));
      for (const id of ids) {
        if (below(3)) entries.set(id, { key: id, value: JSON.stringify({ n: below(9) }), modRevision: turn });
        else entries.delete(id);
      }
      rows.update(ids, entries);
      const fresh = make();
      fresh.rebuild(entries);
      assert.deepEqual(rows.order, fresh.order, JSON.stringify(chosen));
      for (const [at, id] of rows.order.entries()) assert.equal(rows.indexOf(id), at);
      assert.equal(rows.indexOf('/never'), -1);
    }
  }
});

test('a member that is called as etcd calls its own is a member', () => {
  const entries = new Map(['b', 'c', 'a'].map((name, n) => [`/${name}`, {
    key: `/${name}`, value: JSON.stringify({ key: `${n}`, revision: 3 - n }), modRevision: [2, 1, 3][n],
  }]));
  const rows = new Rows(new Members().of);
  const ordered = (sort) => {
    rows.sort = { down: false, ...sort };
    rows.rebuild(entries);
    return rows.order.join('');
  };
  assert.equal(ordered({ by: 'key' }), '/a/b/c');
  assert.equal(ordered({ by: 'revision' }), '/c/b/a');
  assert.equal(ordered({ by: 'field', field: 'key' }), '/b/c/a');
  assert.equal(ordered({ by: 'field', field: 'revision' }), '/a/c/b');
});

test('twenty thousand keys are ordered within a few frames', () => {
  const entries = new Map(Array.from({ length: 20_000 }, (_, n) => [`/k/${(n * 7919) % 20_000}`, { key: `/k/${(n * 7919) % 20_000}`, value: 'v', modRevision: n }]));
  const rows = new Rows(new Members().of);
  rows.rebuild(entries);
  assert.equal(rows.order.length, 20_000);
  rows.filter = 'key:99';
  rows.rebuild(entries);
  assert.ok(rows.order.every((id) => id.includes('99')));
});
