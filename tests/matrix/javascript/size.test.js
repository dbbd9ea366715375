// How much a page loads: the mirror may have 4 KiB, compressed.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { build, transform } from 'esbuild';

const FOLDER = new URL('node_modules/etcd-watch-client/', import.meta.url);
const KIB = 1024;

async function sizes(name) {
  const { code } = await transform(await readFile(new URL(name, FOLDER)), { minify: true, format: 'esm', target: 'es2022' });
  return { minified: Buffer.byteLength(code), compressed: gzipSync(code, { level: 9 }).length };
}

test('the mirror is at most 4 KiB, minified and compressed, and the README says how much', async (context) => {
  const mirror = await sizes('etcd-watch-client.js');
  for (const name of ['shared.js', 'shared-worker.js', 'react.js', 'vue.js', 'snapshots.js'])
    context.diagnostic(`${name}: ${JSON.stringify(await sizes(name))}`);
  context.diagnostic(`etcd-watch-client.js: ${JSON.stringify(mirror)}`);
  const entryPoints = [new URL('shared.js', FOLDER).pathname];
  const shared = await build({ entryPoints, bundle: true, minify: true, format: 'esm', target: 'es2022', write: false });
  const both = gzipSync(shared.outputFiles[0].contents, { level: 9 }).length;
  context.diagnostic(`with connectShared: ${both}`);
  assert.ok(mirror.compressed <= 4 * KIB, `${mirror.compressed}`);
  const readme = await readFile(new URL('README.md', FOLDER), 'utf8');
  const [, compressed, minified] = /is\s+([\d.]+) KiB, minified and compressed \(([\d.]+) KiB minified\)/.exec(readme);
  assert.deepEqual([compressed, minified], [mirror.compressed, mirror.minified].map((size) => (size / KIB).toFixed(1)));
  assert.ok(readme.includes(`${(both / KIB).toFixed(1)} KiB with the client of the shared worker`));
});
