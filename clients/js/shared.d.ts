import type { Mirror, Options, Range } from "./etcd-watch-client.js";

/**
 * A mirror whose connection is that of all tabs: one for the same gateway, ranges, options and token.
 *
 * The connection is in a SharedWorker. Without SharedWorker, or if the worker cannot be loaded, the mirror has a
 * connection of its own. While the worker has no connection, `state` is `stale`, or `syncing` if there is
 * nothing yet, with the reason and `retryAt`. The options `fetch` and `EventSource` are not those of the worker.
 *
 * @param workerUrl where `shared-worker.js` is: `new URL("etcd-watch-client/shared-worker", import.meta.url)` with a
 *   bundler, or its path on your server
 */
export function connectShared<T = unknown>(
  workerUrl: string | URL,
  url: string | URL,
  ranges: Range | readonly Range[],
  options?: Options<T>,
): Mirror<T>;
