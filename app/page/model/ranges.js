// The ranges that the page follows, as its address, as a query of the gateway, and as a command for a shell. A range is
// {kind: "prefix" | "key", name}.

// A name that is not UTF-8 is a string whose bytes above 7f are lone surrogates, as in the client: no text has those.
const LONE = /([\udc80-\udcff])/u;

/** A name in a query. It has no character that a shell treats specially inside single quotes, or that curl globs. */
export const encoded = (name) => name.split(LONE)
  .map((part, at) => (at % 2 ? `%${(part.charCodeAt(0) & 255).toString(16)}` : encodeURIComponent(part))).join('')
  .replaceAll('%2F', '/').replaceAll("'", '%27');

/** The name that `encoded` has encoded, also if others have encoded it: `+` is a space. */
export function decoded(text) {
  const bytes = [];
  for (const [, hex, other] of text.replaceAll('+', ' ').matchAll(/%([0-9a-f]{2})|([^%]+|%)/gi))
    bytes.push(...(hex ? [parseInt(hex, 16)] : new TextEncoder().encode(other)));
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(bytes));
  } catch {
    return bytes.map((byte) => String.fromCharCode(byte > 127 ? 0xdc00 + byte : byte)).join('');
  }
}

/** A name for people: bytes that are no text as \xff, control characters as their pictures. */
export const shown = (name) => name.split(LONE)
  .map((part, at) => (at % 2 ? `\\x${(part.charCodeAt(0) & 255).toString(16)}`
    : part.replace(/[\0-\x1f]/g, (one) => String.fromCharCode(0x2400 + one.charCodeAt(0))))).join('');

/** A name as it is copied: itself, or percent-encoded if it is no text. */
export const copied = (name) => (LONE.test(name) ? encoded(name) : name);

export const write = ({ kind, name }) => `${kind}=${encoded(name)}`;
export const query = (ranges) => ranges.map(write).join('&');
export const same = (a, b) => a.kind === b.kind && a.name === b.name;

/** The ranges of a query or fragment, without repetitions. */
export function read(text) {
  const ranges = [];
  for (const pair of text.replace(/^[?#]/, '').split('&')) {
    const [, kind, name] = /^(prefix|key)=(.*)$/s.exec(pair) ?? [];
    const range = { kind, name: decoded(name ?? '') };
    if ((kind === 'prefix' || (kind === 'key' && name)) && !ranges.some((other) => same(other, range))) ranges.push(range);
  }
  return ranges;
}

/** What a user types as one range: a prefix, or "key=…". */
export function typed(text) {
  const [, kind = 'prefix', name] = /^(?:(prefix|key)=)?(.*)$/s.exec(text);
  return kind === 'key' && !name ? { kind: 'prefix', name: text } : { kind, name };
}

/** A range as /v1/feeds and /v1/access write it, percent-encoded. */
export function parse(text) {
  const at = text.indexOf('=');
  return { kind: text.slice(0, at), name: decoded(text.slice(at + 1)) };
}

/** A range for people. */
export const label = ({ kind, name }) => (kind === 'key' ? `key ${shown(name)}` : shown(name) || 'every key');

/** Whether everything in `inner` is in `outer`. */
export const contains = (outer, inner) => (outer.kind === 'prefix' ? inner.name.startsWith(outer.name) : same(outer, inner));

/** The ranges without those that lie inside others: what the gateway makes of them. */
export const outermost = (ranges) =>
  ranges.filter((one) => !ranges.some((other) => !same(other, one) && contains(other, one)));

const curl = (flag, token, url) => `curl ${flag} ${token ? '-H "Authorization: Bearer $TOKEN" ' : ''}'${url}'`;

/** The same watch in a shell. */
export const curlWatch = (home, ranges, { token = false, keysOnly = false } = {}) =>
  curl('-N', token, `${home}v1/watch?${query(ranges)}${keysOnly ? '&keys_only=1' : ''}`);

/** One key in a shell. */
export const curlKey = (home, name, { token = false } = {}) => curl('-s', token, `${home}v1/kv?key=${encoded(name)}`);

/** A range as the client takes it. */
export const forClient = ({ kind, name }) => ({ [kind]: name });
