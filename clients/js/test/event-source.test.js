// Server-Sent Events, by fetch() and by EventSource, with a gateway that the test plays.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { LIMIT, follow, gateway, turns } from './following.js';
import { cursor, until } from './playing.js';

test('carriage returns that a proxy adds to SSE', LIMIT, async () => {
  const mirror = follow({ format: 'sse' });
  const stream = await gateway.stream();
  const { raw } = stream;
  stream.raw = (text) => raw.call(stream, text.replaceAll('\n', '\r\n'));
  stream.open().state(10, { a: '1' });
  await mirror.synced();
  assert.deepEqual([mirror.cursor, mirror.entries.get('/c/a').value], [cursor(10), '1']);
});

test('who answers, and an answer that is not Server-Sent Events', LIMIT, async () => {
  const mirror = follow({ format: 'sse' });
  const stream = (await gateway.stream()).open({ 'X-Gateway-Instance': 'gw-1' });
  assert.equal(stream.request.headers.accept, 'text/event-stream');
  await turns(mirror, 'syncing');
  assert.deepEqual([mirror.instance, mirror.tier], ['gw-1', null]);
  stream.response.end('data');
  (await gateway.stream()).answer(200, { 'Content-Type': 'text/html' }, '<h1>Log in</h1>');
  await until(() => mirror.reason === "HTTP 200, text/html, not the gateway's answer: <h1>Log in</h1>");
});

// As browsers do it, for one stream: what matters here is what the mirror makes of it.
class EventSource extends EventTarget {
  readyState = 0;
  #abort = new AbortController();

  constructor(url) {
    super();
    this.#read(url).catch(() => this.onerror());
  }

  async #read(url) {
    const answer = await fetch(url, { headers: { Accept: 'text/event-stream' }, signal: this.#abort.signal });
    if (answer.status !== 200) {
      this.readyState = 2;
      throw answer;
    }
    this.onopen();
    let [text, lastEventId] = ['', ''];
    for await (const chunk of answer.body) {
      text += Buffer.from(chunk);
      for (let end; (end = text.indexOf('\n\n')) >= 0; text = text.slice(end + 2)) {
        const fields = Object.fromEntries(text.slice(0, end).split('\n').map((line) => line.split(/: (.*)/s)));
        lastEventId = fields.id ?? lastEventId;
        this.dispatchEvent(Object.assign(new Event(fields.event), { data: fields.data, lastEventId }));
      }
    }
    throw answer;
  }

  close() {
    this.#abort.abort();
  }
}

describe('an EventSource', LIMIT, () => {
  const options = { transport: 'eventsource', EventSource };

  test('follows, and continues with the cursor', async () => {
    const mirror = follow(options);
    const stream = (await gateway.stream()).open().state(10, { a: '1' }).put('/c/b', '2', 11, { more: true });
    assert.deepEqual([stream.request.headers.accept, stream.request.url], ['text/event-stream', '/v1/watch?prefix=%2Fc%2F&format=sse']);
    stream.delete('/c/a', 11);
    await until(() => mirror.revision === 11);
    assert.deepEqual([[...mirror.entries.keys()], mirror.cursor, mirror.state], [['/c/b'], cursor(11), 'live']);
    stream.send('put', { key: 'x' });
    await stream.closed;
    assert.match(mirror.reason, /^not an event of the gateway: /);
    assert.equal((await gateway.stream()).query.get('last_event_id'), cursor(11));
  });

  test('a refusal has its name, because fetch() asks again', async () => {
    const mirror = follow(options);
    (await gateway.stream()).problem(403, 'forbidden');
    (await gateway.stream()).problem(403, 'forbidden');
    await turns(mirror, 'failed');
    assert.equal(mirror.problem.code, 'forbidden');
  });

  test('that gives up after it was open is a disconnect: nobody asks for a reason', async () => {
    class GivesUp extends EventSource { // as Firefox does after some errors of a connection
      set onerror(tell) { this.tell = () => { this.readyState = 2; tell(); }; }
      get onerror() { return this.tell; }
    }
    const mirror = follow({ ...options, EventSource: GivesUp });
    const stream = (await gateway.stream()).open().state(10);
    await mirror.synced();
    stream.cut();
    await turns(mirror, 'disconnected');
    const next = await gateway.stream();
    assert.deepEqual([mirror.reason, next.query.get('format')], ['disconnected', 'sse']);
    next.open().synced(11);
    await mirror.synced();
    assert.equal(gateway.waiting, 0);
  });

  test('is not opened for a mirror that was closed meanwhile', async () => {
    follow(options).close();
    const mirror = follow(options);
    (await gateway.stream()).open().state(10);
    await mirror.synced();
    assert.equal(gateway.waiting, 0);
  });

  test('has no token, and Node has none', async () => {
    for (const words of [{ transport: 'eventsource' }, { ...options, token: 'x' }]) {
      const mirror = follow(words);
      const reason = 'an EventSource has no token, and Node has none; use another transport';
      await assert.rejects(mirror.synced(), { message: reason });
      assert.equal(mirror.state, 'failed');
    }
    assert.equal(gateway.waiting, 0);
  });

  test('goes on by fetch() if that is answered', async () => {
    const mirror = follow(options);
    (await gateway.stream()).answer(502);
    (await gateway.stream()).open().state(10);
    await mirror.synced();
    mirror.close();
    assert.equal(mirror.state, 'closed');
  });
});
