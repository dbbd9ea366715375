import assert from 'node:assert/strict';
import test from 'node:test';

import { byteLength, bytesOf, count, duration, hexLines, plural, preview, size, timeOfDay } from '../../../app/page/model/format.js';

test('numbers, sizes and durations', () => {
  assert.deepEqual([count(1234567), plural(1, 'key'), plural(2, 'key'), plural(0, 'watch', 'watches')], ['1,234,567', '1 key', '2 keys', '0 watches']);
  assert.deepEqual([0, 1023, 1024, 1536, 1048575, 1048576, 5e9].map(size), ['0 B', '1023 B', '1.0 KiB', '1.5 KiB', '1.0 MiB', '1.0 MiB', '4.7 GiB']);
  assert.deepEqual([-5, 999, 59_999, 60_000, 125_000, 3_600_000, 12_000_000, 90_000_000].map(duration),
    ['0 s', '0 s', '59 s', '1 min', '2 min 5 s', '1 h', '3 h 20 min', '1 d 1 h']);
  assert.match(timeOfDay(Date.UTC(2026, 0, 1, 1, 2, 3, 7)), /^\d\d:\d\d:03\.007$/);
});

test('bytes of text and of base64, and their number', () => {
  for (const value of ['', 'abc', 'ü', '€', '😀', 'a😀ü€z', null]) assert.equal(byteLength({ value }), new TextEncoder().encode(value ?? '').length);
  for (const length of [0, 1, 2, 3, 4]) {
    const valueBase64 = Buffer.alloc(length, 255).toString('base64');
    assert.equal(byteLength({ value: null, valueBase64 }), length);
    assert.deepEqual([...bytesOf({ value: null, valueBase64 })], new Array(length).fill(255));
  }
  assert.deepEqual([...bytesOf({ value: 'ü' })], [0xc3, 0xbc]);
});

test('hex has sixteen bytes a line', () => {
  const lines = hexLines(Uint8Array.from({ length: 18 }, (_, n) => n + 60));
  assert.deepEqual(lines.map(({ offset }) => offset), ['00000000', '00000010']);
  assert.equal(lines[0].hex, '3c 3d 3e 3f 40 41 42 43  44 45 46 47 48 49 4a 4b');
  assert.deepEqual(lines[1], { offset: '00000010', hex: '4c 4d'.padEnd(48), text: 'LM' });
  assert.equal(hexLines(Uint8Array.of(0, 255, 65))[0].text, '..A');
  assert.deepEqual(hexLines(new Uint8Array()), []);
});

test('a preview says how much it leaves out, and cuts no character in half', () => {
  assert.deepEqual(preview('a\n b', 10), { text: 'a b', more: 0 });
  assert.deepEqual(preview('abcdef', 4), { text: 'abcd', more: 2 });
  assert.deepEqual(preview('abc😀x', 4), { text: 'abc', more: 3 });
});
