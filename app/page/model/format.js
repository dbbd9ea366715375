// How the page writes numbers, sizes, times and bytes.

const number = new Intl.NumberFormat('en-US');

export const count = (n) => number.format(n);
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** "17 B", "1.5 KiB". */
export function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  const units = ['KiB', 'MiB', 'GiB'];
  let value = bytes / 1024, unit = 0;
  while (value >= 1023.95 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${value.toFixed(1)} ${units[unit]}`;
}

/** A duration in ms, rounded down, in its two largest units: "4 s", "2 min 5 s", "3 h 20 min", "2 d 1 h". */
export function duration(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 60) return `${s} s`;
  const parts = s < 3600 ? [[Math.floor(s / 60), 'min'], [s % 60, 's']]
    : s < 86400 ? [[Math.floor(s / 3600), 'h'], [Math.floor(s / 60) % 60, 'min']]
    : [[Math.floor(s / 86400), 'd'], [Math.floor(s / 3600) % 24, 'h']];
  return parts.filter(([n]) => n).map(([n, unit]) => `${n} ${unit}`).join(' ');
}

/** The time of day with milliseconds, in the reader's time zone: "14:03:07.120". */
export function timeOfDay(ms) {
  const at = new Date(ms), two = (n) => String(n).padStart(2, '0');
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}.${String(at.getMilliseconds()).padStart(3, '0')}`;
}

/** The bytes of a value that the client gives as text, or as base64 if it is no text. */
export function bytesOf({ value, valueBase64 }) {
  if (valueBase64 === undefined) return new TextEncoder().encode(value ?? '');
  return Uint8Array.from(atob(valueBase64), (character) => character.charCodeAt(0));
}

/** The number of bytes of a value, without making them. */
export function byteLength({ value, valueBase64 }) {
  if (valueBase64 !== undefined) return (valueBase64.length / 4) * 3 - (valueBase64.match(/=*$/)?.[0].length ?? 0);
  let bytes = value?.length ?? 0; // UTF-16 units; those above U+007F take two or three bytes
  for (let at = 0; at < (value?.length ?? 0); at++) {
    const unit = value.charCodeAt(at);
    if (unit > 0x7f) bytes += unit > 0x7ff && (unit < 0xd800 || unit > 0xdfff) ? 2 : 1; // half a pair: 4 bytes for 2
  }
  return bytes;
}

/** Bytes as lines of sixteen: the offset, the bytes in hex, and the printable ASCII characters. */
export function hexLines(bytes) {
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const row = [...bytes.subarray(at, at + 16)];
    const hex = row.map((byte) => byte.toString(16).padStart(2, '0'));
    const text = row.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : '.')).join('');
    lines.push({
      offset: at.toString(16).padStart(8, '0'),
      hex: `${hex.slice(0, 8).join(' ')}  ${hex.slice(8).join(' ')}`.padEnd(48),
      text,
    });
  }
  return lines;
}

/** A value in one line, and how much of it is left out: {text, more} with more = characters that are not in text. */
export function preview(text, most) {
  const end = text.length > most && /[\ud800-\udbff]/.test(text[most - 1]) ? most - 1 : most; // no half of a pair
  return { text: text.slice(0, end).replace(/\s+/g, ' '), more: Math.max(0, text.length - end) };
}
