// Several gateways, which the test plays.
import assert from 'node:assert/strict';
import { after, mock, test } from 'node:test';
import { Mirror } from '../etcd-watch-client.js';
import { anyOf } from '../gateways.js';
import { LIMIT, gateway as first, kept } from './following.js';
import { Gateway, cursor } from './playing.js';

const second = await Gateway.start();
after(() => second.stop());

test('a mirror continues at the next gateway, with its cursor and its token', LIMIT, async () => {
  const gone = await Gateway.start();
  gone.stop();
  const urls = [first.url, `${gone.url}/`, `${second.url}/path//?x=1#top`];
  const token = () => 'secret';
  const mirror = kept(new Mirror(urls[0], ['/c/', { key: '/v1/watch?' }], { fetch: anyOf(urls), token }));
  const stream = (await first.stream()).open().state(10, { a: '1' });
  await mirror.synced();
  stream.send('close', { reason: 'drain', retry_ms: 1 });
  const next = await second.stream(); // the one between does not answer
  assert.equal(next.request.url.split('&format')[0], '/path/v1/watch?prefix=%2Fc%2F&key=%2Fv1%2Fwatch%3F');
  assert.equal(next.query.get('last_event_id'), cursor(10));
  assert.equal(next.request.headers.authorization, 'Bearer secret');
  next.open().put('/c/a', '2', 11).synced(11);
  await mirror.synced();
  assert.deepEqual([mirror.revision, mirror.entries.get('/c/a').value], [11, '2']);
  next.cut();
  (await first.stream()).open().synced(11);
  await mirror.synced();
});

test('many mirrors spread over the gateways', async () => {
  const asked = [];
  const urls = ['http://a', 'http://b', 'http://c/path'];
  for (const random of [0, 0.5, 0.99]) {
    mock.method(Math, 'random', () => random);
    await anyOf(urls, async (address) => asked.push(address))('http://a/v1/watch?prefix=x', {});
  }
  assert.deepEqual(asked, ['http://a/v1/watch?prefix=x', 'http://b/v1/watch?prefix=x', 'http://c/path/v1/watch?prefix=x']);
});

test('a wrong call fails at once, and says what to write', () => {
  for (const urls of [undefined, null, '127.0.0.1:8080', ['http://a', undefined]])
    assert.throws(() => anyOf(urls), { name: 'TypeError', message: /is not the URL of a gateway; write http:\/\/HOST:PORT$/ });
  assert.throws(() => anyOf([]), { name: 'TypeError', message: 'name the URL of one gateway, or of several' });
});
