// The picture of the sharing, from the answer of /v1/feeds: streams, the channel that they follow, its watches at etcd.

import { outermost, parse, same } from './ranges.js';

const sameRanges = (written, ranges) =>
  written.length === ranges.length && written.every((one) => ranges.some((other) => same(parse(one), other)));

const sum = (list, member) => list.reduce((total, one) => total + one[member], 0);

/**
 * What the picture shows. `ranges`: what this page follows, or null. `connected`: whether this browser has a stream.
 * {mine: {others, me, channel, feeds} | null, totals: {streams, channels, watches}, above, tier, etcd, channels}; the own channel first.
 */
export function pictureOf(answer, ranges, connected) {
  const channel = ranges && answer.channels.find((one) => sameRanges(one.ranges, outermost(ranges)));
  const feeds = channel ? answer.feeds.filter(({ range }) => channel.feeds.includes(range)) : [];
  const me = connected ? 1 : 0;
  return {
    mine: channel ? { me, others: Math.max(0, channel.subscribers - me), channel, feeds } : null,
    totals: { streams: sum(answer.channels, 'subscribers'), channels: answer.channels.length, watches: answer.feeds.length },
    channels: [...answer.channels].sort((a, b) => (b === channel) - (a === channel) || b.subscribers - a.subscribers),
    // An edge has its watches at another gateway, which `etcd` describes then.
    above: answer.tier ? `a gateway of tier ${answer.tier - 1}` : 'etcd', tier: answer.tier ?? 0,
    etcd: answer.etcd, instance: answer.instance, version: answer.version,
  };
}

/** How many dots stand for the other streams, and how many are left out of the picture. */
export const dotsOf = (others, most = 11) => ({ dots: Math.min(others, most), more: Math.max(0, others - most) });
