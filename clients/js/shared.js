// One connection for all tabs: a mirror whose streams come from a SharedWorker (shared-worker.js), which has the
// connection to the gateway. Everything else is the mirror's: a worker that falls silent is left like a gateway.
import { Mirror } from './etcd-watch-client.js';
import { written } from './written.js';

const PROTOCOL = 3; // of the messages: a worker that another version of this file has started is not used

export function connectShared(workerUrl, url, ranges, options = {}) {
  if (!globalThis.SharedWorker) return new Mirror(url, ranges, options);
  const { token, decode, fetch = globalThis.fetch, EventSource, ...plain } = options;
  const address = new URL(url, globalThis.location?.href).href; // the worker has an address of its own
  let broken = false; // the worker cannot be loaded, or does not answer: this mirror has its own connection

  const ask = (request, { headers, signal }) => new Promise((resolve, reject) => {
    signal.throwIfAborted();
    broken = true; // if the constructor throws: not every page may have a worker
    const worker = new SharedWorker(workerUrl, { type: 'module', name: `etcd-watch-client ${PROTOCOL}` });
    broken = false;
    const { port } = worker;
    const { response, write, fail } = written();
    let begun = false;
    const end = (why) => {
      port.postMessage({ leave: true });
      port.close();
      reject(why);
      fail(why);
    };
    port.onmessage = ({ data: { lines, failed } }) => {
      if (signal.aborted) return;
      if (failed) {
        const { problem } = failed;
        if (problem && !begun) resolve(refused(problem));
        // The token may have ended a moment ago: a function is asked for the present one.
        end({ final: problem?.status !== 401 || typeof token !== 'function', ...failed });
        return;
      }
      begun = true;
      port.postMessage({ alive: true });
      write(lines);
      resolve(response);
    };
    worker.onerror = () => {
      broken = true;
      end({ reason: 'the worker does not load' });
    };
    signal.addEventListener('abort', () => {
      broken ||= !begun;
      end(signal.reason);
    });
    globalThis.addEventListener?.('pagehide', () => port.postMessage({ leave: true }), { signal });
    const bearer = headers.Authorization?.slice('Bearer '.length);
    port.postMessage({ follow: JSON.stringify([address, ranges, plain, bearer]) }); // as text: a Proxy cannot be sent
  });

  const shared = (request, init) => (broken ? fetch(request, init) : ask(request, init));
  const mirror = new Mirror(url, ranges, { ...plain, token, decode, fetch: shared, transport: 'fetch', format: 'ndjson' });
  return proven(mirror, () => broken);
}

const refused = (problem) => new Response(JSON.stringify(problem), {
  status: problem.status, headers: { 'Content-Type': 'application/problem+json' },
});

// The worker speaks while its gateway is silent: that a tab hears it proves nothing. When the worker has heard the
// gateway, and when its state was last proven, is in its lines.
function proven(mirror, isAlone) {
  for (const name of ['lastHeard', 'provenAt']) {
    let known = null;
    Object.defineProperty(mirror, name, {
      get: () => known,
      set(value) {
        if (isAlone()) known = value;
      },
    });
    mirror.addEventListener('proof', ({ detail }) => { known = detail[name]; });
  }
  return mirror;
}
