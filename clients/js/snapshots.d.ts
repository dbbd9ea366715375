import type { Entry, Mirror, Options, Problem, Range, State } from "./etcd-watch-client.js";

/** A mirror at one moment. It does not change; `entries` is another Map exactly when a key has changed. */
export interface Snapshot<T = unknown> {
  readonly entries: ReadonlyMap<string, Entry<T>>;
  readonly state: State;
  readonly reason: string | null;
  readonly problem: Problem | null;
  readonly revision: number;
  readonly retryAt: number | null;
  readonly lastHeard: number | null;
  readonly provenAt: number | null;
  /** The mirror itself, for `reconnect()`; null before it is opened, and on a server. */
  readonly mirror: Mirror<T> | null;
}

export interface HookOptions<T = unknown> extends Options<T> {
  /** Opens the mirror: for example `(...words) => connectShared(workerUrl, ...words)`. */
  connect?: (url: string | URL, ranges: Range | readonly Range[], options: Options<T>) => Mirror<T>;
}
