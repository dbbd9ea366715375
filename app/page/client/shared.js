// One connection for all tabs: a mirror whose streams come from a SharedWorker (shared-worker.js), which has the
// connection to the gateway. Everything else is the mirror's: a worker that falls silent is left like a gateway.
import { Mirror } from './etcd-watch-client.js';

const PROTOCOL = 2; // of the messages: a worker that another version of this file has started is not used

export function connectShared(workerUrl, url, ranges, options = {}) {
  if (!globalThis.SharedWorker) return new Mirror(url, ranges, options);
  const { token, decode, fetch = globalThis.fetch, EventSource, ...plain } = options;
  const address = new URL(url, globalThis.location?.href).href; // the worker has an address of its own
  let broken = false; // the worker cannot be loaded, or does not answer: this mirror has its own connection
  let refused = 0; // how many tokens were refused since a stream was in order

  const ask = (request, { headers, signal }) => new Promise((resolve, reject) => {
    const worker = new SharedWorker(workerUrl, { type: 'module', name: `etcd-watch-client ${PROTOCOL}` });
    const { port } = worker;
    const { readable, writable } = new TransformStream(undefined, { highWaterMark: Infinity });
    const [writer, encoder] = [writable.getWriter(), new TextEncoder()];
    let response;
    const end = (why) => {
      port.postMessage({ leave: true });
      port.close();
      reject(why);
      writer.abort(why).catch(() => {});
    };
    port.onmessage = ({ data: { lines, failed } }) => {
      if (signal.aborted) return;
      if (failed) {
        // The token may have ended a moment ago: a function is asked for the present one.
        const again = failed.problem?.status === 401 && token?.call && !refused++;
        end({ final: !again, ...failed });
        return;
      }
      if (lines.includes('"synced"')) refused = 0;
      port.postMessage({ alive: true });
      writer.write(encoder.encode(lines)).catch(() => {});
      response ??= new Response(readable, { headers: { 'Content-Type': 'application/x-ndjson' } });
      resolve(response);
    };
    worker.onerror = () => {
      broken = true;
      end({ reason: 'the worker does not load' });
    };
    signal.addEventListener('abort', () => {
      broken ||= !response;
      end(signal.reason);
    });
    globalThis.addEventListener?.('pagehide', () => port.postMessage({ leave: true }), { signal });
    const bearer = headers.Authorization?.slice('Bearer '.length);
    port.postMessage({ follow: JSON.stringify([address, ranges, plain, bearer]) }); // as text: a Proxy cannot be sent
  });
  const shared = (request, init) => (broken ? fetch(request, init) : ask(request, init));
  return new Mirror(url, ranges, { ...plain, token, decode, fetch: shared, transport: 'fetch', format: 'ndjson', relayed: true });
}
