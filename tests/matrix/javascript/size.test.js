// How much a page loads: the mirror, and what an option adds to it.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { transform } from 'esbuild';

const FOLDER = new URL('node_modules/etcd-watch-client/', import.meta.url);
// Bytes, minified. Decision 26 says what the bytes of the mirror are for, and why they are not 4,096.
const MIRROR = ['etcd-watch-client.js'];
const PARTS = {
  'the mirror': [MIRROR, 6220],
  'for a token': [['tokens.js'], 860],
  'for Server-Sent Events': [['event-source.js', 'written.js'], 2130],
  'for one connection of all tabs': [['shared.js', 'written.js'], 1850],
  'the worker of all tabs': [['shared-worker.js'], 3300],
  'for several gateways': [['gateways.js'], 520],
  'for React': [['react.js', 'snapshots.js'], 1350],
  'for Vue': [['vue.js', 'snapshots.js'], 1250],
};

async function minified(name) {
  return (await transform(await readFile(new URL(name, FOLDER)), { minify: true, format: 'esm', target: 'es2022' })).code;
}
const kib = (bytes) => (bytes / 1024).toFixed(1);

test('no part is larger than it may be, and the README says how large each one is', async (context) => {
  const readme = (await readFile(new URL('README.md', FOLDER), 'utf8')).replace(/\s+/g, ' ');
  for (const [part, [names, limit]] of Object.entries(PARTS)) {
    const codes = await Promise.all(names.map(minified));
    const size = codes.reduce((sum, code) => sum + Buffer.byteLength(code), 0);
    context.diagnostic(`${part}: ${size} bytes`);
    assert.ok(size <= limit, `${part}: ${size} bytes`);
    if (!/React|Vue/.test(part)) assert.ok(readme.includes(`| ${part} | ${kib(size)} KiB |`), `${part}: ${kib(size)} KiB`);
  }
  const compressed = kib(gzipSync(await minified(...MIRROR), { level: 9 }).length);
  assert.ok(readme.includes(`${compressed} KiB compressed`), compressed);
});

test('a page that only makes a mirror loads one file', async () => {
  const { modules } = await loads('etcd-watch-client.js');
  assert.deepEqual(modules, { now: [], later: ['event-source.js', 'tokens.js'] });
});

test('each file that is loaded later is in the package, and loads the mirror no second time', async () => {
  for (const name of ['event-source.js', 'tokens.js']) {
    const { modules } = await loads(name);
    assert.deepEqual([modules.now.filter((one) => one !== 'written.js'), modules.later], [[], []], name);
  }
});

// The modules that a file imports, at once and later.
async function loads(name) {
  const code = await readFile(new URL(name, FOLDER), 'utf8');
  const found = (pattern) => [...code.matchAll(pattern)].map(([, file]) => file).sort();
  return { modules: { now: found(/ from '\.\/(.*)'/g), later: found(/import\('\.\/(.*)'\)/g) } };
}
