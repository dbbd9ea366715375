import assert from 'node:assert/strict';
import test from 'node:test';

import { dotsOf, pictureOf } from '../../../app/page/model/sharing.js';

const prefix = (name) => ({ kind: 'prefix', name });
const answer = {
  instance: 'gw', version: '1', etcd: { state: 'ready' },
  feeds: [{ range: 'prefix=/svc/' }, { range: 'prefix=/config/' }],
  channels: [
    { ranges: ['prefix=/config/'], feeds: ['prefix=/config/'], subscribers: 1 },
    { ranges: ['prefix=/config/', 'prefix=/svc/'], feeds: ['prefix=/config/', 'prefix=/svc/'], subscribers: 9 },
    { ranges: ['prefix=/svc/a%20b/'], feeds: ['prefix=/svc/'], subscribers: 0 },
  ],
};

test('the channel of this page is found whatever the order of its ranges', () => {
  const { mine } = pictureOf(answer, [prefix('/svc/'), prefix('/config/')], true);
  assert.deepEqual([mine.me, mine.others, mine.feeds.length], [1, 8, 2]);
  assert.equal(pictureOf(answer, [prefix('/svc/a b/')], false).mine.channel, answer.channels[2]);
});

test('a stream that the gateway does not count yet makes no negative number', () => {
  const { mine } = pictureOf(answer, [prefix('/svc/a b/')], true);
  assert.deepEqual([mine.me, mine.others], [1, 0]);
});

test('without a channel of its own the page shows the sums', () => {
  const { mine, totals, channels, above } = pictureOf(answer, [prefix('/other/')], true);
  assert.equal(above, 'etcd');
  assert.equal(pictureOf({ ...answer, tier: 2 }, null, false).above, 'a gateway of tier 1');
  assert.equal(mine, null);
  assert.deepEqual(totals, { streams: 10, channels: 3, watches: 2 });
  assert.deepEqual(channels.map(({ subscribers }) => subscribers), [9, 1, 0]);
  assert.equal(pictureOf(answer, null, false).mine, null);
});

test('dots stand for a few; the rest is a number', () => {
  assert.deepEqual([dotsOf(0), dotsOf(11), dotsOf(41)], [{ dots: 0, more: 0 }, { dots: 11, more: 0 }, { dots: 11, more: 30 }]);
});
