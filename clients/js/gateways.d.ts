/**
 * Follows one etcd through several gateways: each connection is asked of the next one, and continues where the last one
 * was. `new Mirror(urls[0], ranges, { fetch: anyOf(urls) })`
 *
 * @param urls the gateways' addresses, with the paths under which proxies serve them
 * @param ask instead of the global `fetch`, for example to send cookies to another origin
 */
export function anyOf(urls: readonly string[], ask?: typeof fetch): typeof fetch;
