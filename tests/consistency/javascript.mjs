// A follower of the torture: prints a line of JSON for each claim of the JavaScript mirror, and what it shows now.
// Arguments: the gateway, the ranges, the options, `shared` if the mirror's streams come from a shared worker, and the
// file of the token.
import { readFile } from 'node:fs/promises';
import { Mirror } from '../../clients/js/etcd-watch-client.js';
import { accept } from '../../clients/js/shared-worker.js';
import { connectShared } from '../../clients/js/shared.js';

const EVERY = 20; // one claim for so many changes: each has the whole mirror
const SHOWN = 250; // ms

globalThis.SharedWorker = class {
  constructor() {
    const { port1, port2 } = new MessageChannel();
    accept(port2);
    this.port = port1;
  }
};

const [url, ranges, options, kind, file] = process.argv.slice(2).map((word) => (/^[[{]/.test(word) ? JSON.parse(word) : word));
if (file) options.token = () => readFile(file, 'utf8');
const mirror = kind === 'shared' ? connectShared('', url, ranges, options) : new Mirror(url, ranges, options);
const print = (claim) => process.stdout.write(`${JSON.stringify(claim)}\n`);

const toItem = ({ key, keyBase64, value, valueBase64, ...entry }) => ({
  type: 'put', mod_revision: entry.modRevision, create_revision: entry.createRevision, version: entry.version,
  ...(keyBase64 ? { key: keyBase64, key_encoding: 'base64' } : { key }),
  ...(valueBase64 === undefined ? { value } : { value: valueBase64, encoding: 'base64' }),
  ...(entry.lease && { lease: entry.lease }),
});

let changes = EVERY;
mirror.addEventListener('changes', ({ detail }) => { changes += detail.changes.length; });
let told;
mirror.addEventListener('state', () => {
  const { reason } = mirror;
  if (reason !== told && /^(expired|revoked|the token is renewed)$/.test(reason)) print({ ended: reason });
  told = reason;
  if (mirror.state === 'failed') {
    print({ failed: reason });
    process.exit(mirror.problem?.status === 401 && !mirror.provenAt ? 3 : 1);
  }
  if (mirror.state !== 'live' || changes < EVERY) return;
  changes = 0;
  print({ revision: mirror.revision, items: [...mirror.entries.values()].map(toItem) });
});
setInterval(() => print({ shows: mirror.state === 'live' ? mirror.revision : null }), SHOWN);
process.stdin.on('end', () => process.exit()).resume(); // the torture has ended, however it did
