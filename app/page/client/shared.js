// One connection for all tabs: a mirror whose streams come from a SharedWorker (shared-worker.js), which has the
// connection to the gateway. Everything else is the mirror's: a worker that falls silent is left like a gateway.
import { Mirror } from './etcd-watch-client.js';
import { written } from './written.js';

const PROTOCOL = 4; // of the messages: a worker that another version of this file has started is not used
const NEXT_TOKEN = 150_000; // ms after which no other token is hoped for, as in tokens.js

export function connectShared(workerUrl, url, ranges, options = {}) {
  if (!globalThis.SharedWorker) return new Mirror(url, ranges, options);
  const { token, decode, fetch = globalThis.fetch, EventSource, ...plain } = options;
  const address = new URL(url, globalThis.location?.href).href; // the worker has an address of its own
  let broken = false; // the worker cannot be loaded, or does not answer: this mirror has its own connection
  let refused = 0; // tokens, one after the other
  let since; // when the first of them was refused

  // The token may have ended a moment ago: a function is asked for the present one. If a token was accepted before,
  // another one may come late.
  const isFinal = ({ problem }) => {
    if (problem?.status !== 401 || !token?.call) return true;
    if (!refused++) since = performance.now();
    if (refused < 2 || (mirror.lastHeard && performance.now() - since < NEXT_TOKEN)) return false;
    refused = 0;
    return true;
  };

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
        end({ final: isFinal(failed), ...failed });
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

  // A connection of its own is made as the options ask. The mirror itself sees to the format: what a worker answers is
  // NDJSON in any case. An EventSource takes the place of fetch(), and not of the worker.
  const isEventSource = plain.transport === 'eventsource';
  const shared = async (...words) =>
    (!broken ? ask : isEventSource ? (await import('./event-source.js')).byEvents(fetch, options) : fetch)(...words);
  const mirror = new Mirror(url, ranges, { ...plain, token, decode, fetch: shared, ...(isEventSource && { transport: 'fetch' }) });

  // The worker speaks while its gateway is silent: that a tab hears it proves nothing. Which gateway the worker has heard,
  // when, and when its state was last proven, is in its lines, as soon as it knows.
  const known = { lastHeard: null, provenAt: null, instance: null, tier: null };
  for (const name in known) {
    Object.defineProperty(mirror, name, {
      get: () => known[name],
      set(value) {
        if (broken) known[name] = value;
      },
    });
  }
  mirror.addEventListener('proof', ({ detail }) => {
    if (detail.lastHeard) refused = 0;
    Object.assign(known, detail);
  });
  return mirror;
}
