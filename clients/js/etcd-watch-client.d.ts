/** A key with its value, as etcd has it. */
export interface Entry<T = unknown> {
  /**
   * The key as text. A key that is not UTF-8 has a lone surrogate (U+DC80 to U+DCFF) for each byte above 7f, which no
   * text has: keys stay distinct, and can be asked for again. Such an entry has `keyBase64`, too.
   */
  readonly key: string;
  readonly keyBase64?: string;
  /** The value as text; null if the value is not UTF-8, and with `keysOnly`. */
  readonly value: string | null;
  /** The value, if it is not UTF-8. */
  readonly valueBase64?: string;
  readonly createRevision: number;
  readonly modRevision: number;
  readonly version: number;
  /** The lease's id in hex, as etcdctl prints it. */
  readonly lease: string | null;
  /** What the option `decode` returned. */
  readonly decoded?: T;
  /** What the option `decode` threw. */
  readonly decodeError?: unknown;
}

/** What happened to one key. `previous` is absent if the key did not exist. */
export type Change<T = unknown> =
  | { readonly type: "put"; readonly key: string; readonly entry: Entry<T>; readonly previous?: Entry<T> }
  | { readonly type: "delete"; readonly key: string; readonly entry?: undefined; readonly previous?: Entry<T> };

/** Everything that changed at once: one etcd transaction, or the differences that a reset brought. */
export interface Changes<T = unknown> {
  readonly revision: number;
  readonly changes: readonly Change<T>[];
  /** Why the gateway sent the whole state: `initial`, `lagged`, `compacted`, `cursor-lost`, `restored`, `unproven`. */
  readonly reset?: string;
}

/**
 * - `connecting`: the first try; nothing has come yet
 * - `syncing`: a stream is open, and what is missing comes; `entries` is exact at `revision`
 * - `live`: complete and current
 * - `stale`: exact at `revision`, but the gateway cannot prove that this is current
 * - `disconnected`: no stream; the next try is at `retryAt`, or runs if that is null
 * - `failed`: the gateway refuses for good (`problem`); `reconnect()` tries again
 * - `closed`: `close()` was called
 */
export type State = "connecting" | "syncing" | "live" | "stale" | "disconnected" | "failed" | "closed";

/** A refusal of the gateway (RFC 9457). docs/problems.md lists the codes. */
export interface Problem {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  readonly code: string;
  readonly detail: string;
  readonly parameter?: string;
}

/** A prefix, or a range of its own: `{ key: "/leader" }`, `{ prefix: "/config/" }`. */
export type Range = string | { readonly prefix: string } | { readonly key: string };

/** A bearer token, or a function that returns the present one: it is asked before each connection. */
export type Token = string | (() => string | null | undefined | Promise<string | null | undefined>);

export interface Options<T = unknown> {
  token?: Token;
  /**
   * How to follow. `auto` and `fetch`: by `fetch()`, which can send a token, and names what went wrong. `eventsource`:
   * by `EventSource`, for proxies and browsers in which streams by `fetch()` do not work. An `EventSource` has no
   * token, and Node has no `EventSource`: the mirror is then `failed`.
   */
  transport?: "auto" | "fetch" | "eventsource";
  /** The format of streams by `fetch()`. `sse` is for proxies that buffer everything else. By default `ndjson`. */
  format?: "ndjson" | "sse";
  /** Follow the keys without their values. */
  keysOnly?: boolean;
  /** `latest`: of the changes of half a second, only the newest of each key. */
  mode?: "latest";
  /** Further parameters of the request: `{ scope: "permitted" }`, `{ interval: "2s" }`, `{ min_revision: 15 }`. */
  query?: Readonly<Record<string, string | number>>;
  /**
   * Is called once for each entry that changed, for example `(text) => JSON.parse(text ?? "null")`. The result is
   * `entry.decoded`.
   */
  decode?: (value: string | null, entry: Entry<T>) => T;
  /** Instead of the global ones, for example to send cookies to another origin. */
  fetch?: typeof fetch;
  EventSource?: typeof EventSource;
}

/** What the events carry as `detail`. */
export interface MirrorEvents<T = unknown> {
  /** `entries` has changed, from one revision to another. */
  changes: Changes<T>;
  /** The gateway sends the whole state. The differences come as `changes`, with the same reason. */
  reset: { readonly reason: string; readonly ranges: readonly string[] | null };
  /** `state`, `reason`, `revision`, `retryAt` or `expires` has changed. */
  state: { readonly state: State; readonly reason: string | null };
  /** The gateway refuses for good. */
  failed: Problem | null;
}

/** What a mirror and a shared mirror have in common. */
export interface MirrorLike<T = unknown> extends EventTarget {
  /** The keys, exact at `revision`, never between two revisions. It stays the same Map. */
  readonly entries: ReadonlyMap<string, Entry<T>>;
  readonly state: State;
  /** Why the mirror is not live. */
  readonly reason: string | null;
  /** What the gateway refused in the last try; null if it did not refuse. */
  readonly problem: Problem | null;
  readonly revision: number;
  /** Where the next stream continues. */
  readonly cursor: string | null;
  /** The ranges of the stream, written as in a query. With `scope: "permitted"`, what may be read of them. */
  readonly ranges: readonly string[] | null;
  /** When the next try begins, in ms since 1970: for a countdown. */
  readonly retryAt: number | null;
  /** When the gateway last gave a sign of life, in ms since 1970. */
  readonly lastHeard: number | null;
  /** When `entries` was last known to be current, in ms since 1970: `Date.now() - provenAt` is the age of what you show. */
  readonly provenAt: number | null;
  /** When the credentials of the present stream expire (RFC 3339), once the gateway has said so. */
  readonly expires: string | null;
  /** Which instance of the gateway answers. */
  readonly instance: string | null;
  /** How many gateways are between that instance and etcd, if the instance says so. */
  readonly tier: string | null;
  /** Resolves when the mirror is live, and rejects when it has failed or is closed. */
  synced(): Promise<void>;
  /** Stop following. Nothing opens the mirror again. */
  close(): void;
  /** Open a new stream now, which continues where the last one was: after a new login, or instead of the next try. */
  reconnect(): void;
  addEventListener<K extends keyof MirrorEvents<T>>(
    type: K,
    listener: (event: CustomEvent<MirrorEvents<T>[K]>) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof MirrorEvents<T>>(
    type: K,
    listener: (event: CustomEvent<MirrorEvents<T>[K]>) => void,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
}

/** A mirror of ranges of keys: always exact at its revision, and current while its state is `live`. */
export interface Mirror<T = unknown> extends MirrorLike<T> {}
export class Mirror<T = unknown> {
  /**
   * @param url the gateway's address, with the path under which a proxy serves it
   * @param ranges a prefix, or several ranges, which are one stream in one order; the prefix "" means all keys
   * @throws TypeError what is not a URL, a range or an option, and what to write
   */
  constructor(url: string | URL, ranges: Range | readonly Range[], options?: Options<T>);
}
