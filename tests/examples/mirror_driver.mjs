// Runs the package etcd-watch-client as node_client.py tells it: a command per line on stdin, an answer per line on
// stdout. A view has the words of the other clients: `connecting` without a state, `stale` with one that is not live.
import { createInterface } from 'node:readline';
import { Mirror } from '../../clients/js/etcd-watch-client.js';

Math.random = () => 0; // the shortest delays

let mirror, views, changes;
const state = () => (mirror.state === 'live' ? 'live' : mirror.revision ? 'stale' : 'connecting');
const shown = ({ key, keyBase64 }) => (keyBase64 ? `base64:${keyBase64}` : key);

const commands = {
  start(url, ranges, options) {
    [views, changes] = [[], []];
    mirror = new Mirror(url, ranges, options);
    mirror.addEventListener('changes', ({ detail }) => {
      changes.push(...detail.changes.map(({ type, entry, previous }) => [type, shown(entry ?? previous)]));
    });
    mirror.addEventListener('state', () => {
      if (mirror.state === 'closed') return;
      const items = [...mirror.entries.values()].map((entry) => [shown(entry), entry.value]);
      const view = [state(), mirror.revision, mirror.cursor ?? '', items, mirror.reason ?? ''];
      // The time of the next try is no part of a view.
      if (JSON.stringify(view) !== JSON.stringify(views.at(-1))) views.push(view);
    });
  },
  views: () => views,
  changes: () => changes,
  state,
  problem: () => mirror.problem,
  stop: () => mirror.close(),
};

for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...words] = JSON.parse(line);
  process.stdout.write(`${JSON.stringify(commands[name](...words) ?? null)}\n`);
}
process.exit();
