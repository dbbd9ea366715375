// The mirror with a real gateway and a real etcd: ETCD_WATCH_TEST_GATEWAY and ETCD_WATCH_TEST_ETCD are their addresses.
// tests/clients/test_javascript.py of the repository starts both.
import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { Mirror } from '../etcd-watch-client.js';
import { accept } from '../shared-worker.js';
import { connectShared } from '../shared.js';
import { until } from './playing.js';

const { ETCD_WATCH_TEST_GATEWAY: gateway, ETCD_WATCH_TEST_ETCD: etcd } = process.env;
const base64 = (value) => Buffer.from(value, 'latin1').toString('base64');
const utf8 = (text) => Buffer.from(text).toString('latin1');

async function ask(path, body) {
  const answer = await fetch(`${etcd}/v3/kv/${path}`, { method: 'POST', body: JSON.stringify(body) });
  assert.equal(answer.status, 200);
  const { header, ...rest } = await answer.json();
  return { revision: Number(header.revision), ...rest };
}
const put = async (key, value) => (await ask('put', { key: base64(utf8(key)), value: base64(utf8(value)) })).revision;
const remove = async (key) => (await ask('deleterange', { key: base64(utf8(key)) })).revision;

// What etcd has under a prefix at a revision, as a mirror shows it.
async function truth(prefix, revision) {
  const end = prefix.slice(0, -1) + String.fromCharCode(prefix.charCodeAt(prefix.length - 1) + 1);
  const { kvs = [] } = await ask('range', { key: base64(prefix), range_end: base64(end), revision });
  const text = (value = '') => Buffer.from(value, 'base64').toString();
  return Object.fromEntries(kvs.map((kv) => [text(kv.key), [text(kv.value), Number(kv.mod_revision), Number(kv.version)]]));
}

const shown = ({ entries }) => Object.fromEntries(
  [...entries].map(([key, { value, modRevision, version }]) => [key, [value, modRevision, version]]),
);

const mirrors = [];
afterEach(() => { for (const mirror of mirrors.splice(0)) mirror.close(); });
const kept = (mirror) => {
  mirrors.push(mirror);
  return mirror;
};
const direct = (...words) => kept(new Mirror(gateway, ...words));

describe('with a real gateway and a real etcd', { skip: !gateway && 'NOT RUN: no gateway is named', timeout: 120_000 }, () => {
  for (const [name, follow] of Object.entries({
    ndjson: (ranges) => direct(ranges),
    sse: (ranges) => direct(ranges, { format: 'sse' }),
    latest: (ranges) => direct(ranges, { mode: 'latest', query: { interval: '50ms' } }),
    shared: (ranges) => {
      globalThis.SharedWorker = class {
        constructor() {
          const { port1, port2 } = new MessageChannel();
          accept(port2);
          this.port = port1;
        }
      };
      return kept(connectShared('', gateway, ranges));
    },
  }))
    test(`${name}: exact at each revision, through reconnects`, async () => {
      const prefix = `/${name}/`;
      await put(`${prefix}kept`, 'ü\u2028');
      await put(`${prefix}gone`, '');
      const mirror = follow(prefix);
      const pairs = [];
      mirror.addEventListener('changes', ({ detail }) => {
        pairs.push([mirror.entries.get(`${prefix}x`)?.value, mirror.entries.get(`${prefix}y`)?.value, detail.revision]);
      });
      await mirror.synced();
      assert.deepEqual(shown(mirror), await truth(prefix, mirror.revision));
      let revision = await remove(`${prefix}gone`);
      for (let number = 0; number < 20; number++) {
        const value = base64(`${number}`);
        ({ revision } = await ask('txn', { success: [
          { requestPut: { key: base64(`${prefix}x`), value } }, { requestPut: { key: base64(`${prefix}y`), value } },
        ] }));
        if (number % 7 === 3) mirror.reconnect();
      }
      await until(() => mirror.revision >= revision && mirror.state === 'live');
      assert.deepEqual(shown(mirror), await truth(prefix, mirror.revision));
      assert.deepEqual(pairs.filter(([x, y]) => x !== y), []);
      const revisions = pairs.map(([, , at]) => at);
      assert.deepEqual(revisions, [...new Set(revisions)].sort((a, b) => a - b));
    });

  test('a key of any bytes, keys alone, and a key by itself', async () => {
    await ask('put', { key: base64('/bytes/\xff\x00+%'), value: base64('\xff') });
    const mirror = direct('/bytes/');
    await mirror.synced();
    const [[key, entry]] = mirror.entries;
    assert.deepEqual([entry.keyBase64, entry.value, entry.valueBase64], [base64('/bytes/\xff\x00+%'), null, base64('\xff')]);
    const one = direct({ key }, { keysOnly: true });
    await one.synced();
    assert.deepEqual([...one.entries.keys()], [key]);
    assert.deepEqual([one.entries.get(key).value, one.entries.get(key).valueBase64], [null, undefined]);
  });

  test('the gateway names what it refuses', async () => {
    const mirror = direct('/x/', { query: { colour: 'red' } });
    await assert.rejects(mirror.synced(), /^Error: HTTP 400 unknown-parameter: /);
    assert.equal(mirror.problem.parameter, 'colour');
    await assert.rejects(direct({ key: '' }).synced(), /^Error: HTTP 400 /);
  });
});
