// The picture of the sharing: streams on the left become one channel, and one watch at etcd on the right.

import { count, plural } from '../model/format.js';
import { dotsOf, pictureOf } from '../model/sharing.js';
import { label, parse, query } from '../model/ranges.js';
import { h, svg } from './dom.js';

const WIDTH = 400, LEFT = 12, CHANNEL = 205, ETCD = 368;
const FEWEST = 52, MOST = 104, SPACE = 18, MARGIN = 22; // heights of the column of streams, with few and with many

const curve = (x1, y1, x2, y2, name) => svg('path', { class: name, d: `M${x1} ${y1}C${(x1 + x2) / 2} ${y1} ${(x1 + x2) / 2} ${y2} ${x2} ${y2}` });
const text = (x, y, name, ...what) => svg('text', { x, y, class: name }, ...what);

/** The picture as an element. `ranges`: what this page follows, or null. */
export function drawPicture(answer, ranges, connected) {
  const { mine, totals, above, tier, etcd, channels } = pictureOf(answer, ranges, connected);
  const me = mine ? mine.me : 0, streams = mine ? mine.me + mine.others : totals.streams;
  const watches = mine ? mine.feeds.length : totals.watches, middle = mine ? 1 : totals.channels;
  const all = mine ? mine.others : totals.streams, { dots, more } = dotsOf(all);
  const spots = dots + me, space = Math.min(SPACE, MOST / Math.max(1, spots - 1)), column = Math.max(0, spots - 1) * space;
  const height = Math.max(FEWEST, column) + 2 * MARGIN, middleY = height / 2, top = middleY - column / 2;
  const picture = svg('svg', { viewBox: `0 0 ${WIDTH} ${height}`, class: `sharing ${etcd.state === 'ready' ? '' : 'away'}`, role: 'img',
    'aria-label': `${plural(streams, 'stream')}, ${plural(middle, 'channel')}, ${plural(watches, 'watch', 'watches')} at ${above}` });
  for (let at = 0; at < spots; at++) {
    const own = me && at === 0, y = top + at * space;
    picture.append(curve(LEFT, y, CHANNEL - 44, middleY, own ? 'line own' : 'line'), svg('circle', { cx: LEFT, cy: y, r: own ? 5.5 : 3.6, class: own ? 'own' : 'dot' }));
    if (own) picture.append(text(LEFT + 12, y - 7, 'name own', 'this browser'));
  }
  const lines = Math.max(1, Math.min(5, watches));
  for (let at = 0; at < lines && watches; at++) picture.append(curve(CHANNEL + 44, middleY, ETCD - 27, middleY + (at - (lines - 1) / 2) * 9, 'line watch'));
  picture.append(
    svg('rect', { x: CHANNEL - 44, y: middleY - 17, width: 88, height: 34, rx: 17, class: 'node' }), text(CHANNEL, middleY + 4, 'node-name', middle === 1 ? 'channel' : `${count(middle)} channels`),
    svg('rect', { x: ETCD - 27, y: middleY - 24, width: 54, height: 48, rx: 10, class: 'node etcd' }), text(ETCD, middleY + 4, 'node-name', tier ? 'gateway' : 'etcd'),
    text(ETCD, middleY + 42, 'small', etcd.state === 'ready' ? (tier ? `tier ${tier - 1}` : etcd.version ?? '') : 'away'));
  if (more) picture.append(text(LEFT + 12, height - 6, 'small left', `and ${count(more)} more`));
  return h('div', {}, sentence(streams, middle, watches, above), picture, table(channels, mine?.channel, watches));
}

function sentence(streams, channels, watches, above) {
  const number = (n, one, many) => [h('strong', {}, count(n)), ` ${n === 1 ? one : many}`];
  return h('p', { class: 'sum' }, ...number(streams, 'stream', 'streams'), ' → ', ...number(channels, 'channel', 'channels'),
    ' → ', ...number(watches, 'watch', 'watches'), ` at ${above}`);
}

function table(channels, mine, watches) {
  const most = 50, row = (channel) => h('tr', { class: channel === mine ? 'mine' : '' },
    h('td', {}, h('a', { class: 'mono', href: `#${query(channel.ranges.map(parse))}` }, channel.ranges.map((one) => label(parse(one))).join(', '))),
    h('td', { class: 'number' }, count(channel.subscribers)), h('td', { class: 'number' }, count(channel.keys)),
    h('td', { class: `state ${channel.state}` }, channel.lingering ? 'lingers' : channel.state));
  if (!channels.length) return h('p', { class: 'dim' }, `Nobody follows now.${watches ? ' The watch of a pinned prefix stays.' : ''}`);
  return h('div', { class: 'channels', tabindex: 0, role: 'region', 'aria-label': 'Channels of this instance' }, h('table', {},
    h('thead', {}, h('tr', {}, ...['Channel', 'Streams', 'Keys', 'State'].map((name, at) => h('th', { scope: 'col', class: at === 1 || at === 2 ? 'number' : '' }, name)))),
    h('tbody', {}, ...channels.slice(0, most).map(row))),
  channels.length > most ? h('p', { class: 'dim' }, `and ${count(channels.length - most)} with fewer streams: see Feeds`) : null);
}

/** Why there is no picture, and what would give one. */
export function drawRefusal(served, problem) {
  const why = !served ? 'The picture of the sharing is served on the admin port of this gateway (GATEWAY_ADMIN_PORT), not here.'
    : problem?.status === 403 ? 'The picture of the sharing names what others read, so it is shown to the role operator only. Your identity does not have this role.'
    : problem?.status === 401 ? 'The picture of the sharing needs a token with the role operator.'
    : problem ? `The picture of the sharing is not available: ${problem.detail ?? problem.title}` : 'Asking for the picture of the sharing …';
  return h('p', { class: 'empty' }, why);
}
