// What clients that others wrote do without the lines that docs/clients.md adds. With a release that needs a line no
// more, the test of the line fails.
import assert from 'node:assert/strict';
import { EventEmitter } from 'node:events';
import http from 'node:http';
import https from 'node:https';
import { after, before, test } from 'node:test';
import { fetchEventSource } from '@microsoft/fetch-event-source';
import { EventSource } from 'eventsource';
import { createEventSource } from 'eventsource-client';
import launchdarkly from 'launchdarkly-eventsource';
import reconnecting from 'reconnecting-eventsource';
import { Gateway, cursor, until } from './playing.js'; // that of clients/js/test

const ReconnectingEventSource = reconnecting.default ?? reconnecting;
const LIMIT = { timeout: 60_000 };
const listeners = [];
globalThis.window = globalThis; // what fetch-event-source takes from a browser
globalThis.document = { hidden: false, addEventListener: (_, listener) => listeners.push(listener), removeEventListener() {} };

let gateway;
let url;
before(async () => {
  gateway = await Gateway.start();
  url = `${gateway.url}/v1/watch?prefix=/c/`;
});
after(() => gateway.stop());

test('eventsource gives up after an answer that is not a stream', LIMIT, async () => {
  const source = new EventSource(url);
  (await gateway.stream()).answer(502);
  await until(() => source.readyState === 2);
});

test('eventsource-client takes a refusal for a stream, and asks again', LIMIT, async () => {
  const source = createEventSource({ url });
  const first = await gateway.stream();
  first.open({ retry: 1 }).response.end(); // so that it does not wait for 2 s
  (await gateway.stream()).problem(401, 'unauthorized');
  (await gateway.stream()).problem(401, 'unauthorized');
  await gateway.stream();
  source.close();
});

test('reconnecting-eventsource asks again after a refusal, and does not tell it', LIMIT, async () => {
  const own = await Gateway.start();
  const errors = [];
  const address = `${own.url}/v1/watch?prefix=/c/`;
  const source = new ReconnectingEventSource(address, { eventSourceClass: EventSource, max_retry_time: 1 });
  source.onerror = (error) => errors.push(error);
  for (let time = 0; time < 3; time++) (await own.stream()).problem(401, 'unauthorized');
  assert.deepEqual(errors, []);
  source.close();
  own.stop();
});

test('fetch-event-source ends with the stream', LIMIT, async () => {
  const done = fetchEventSource(url, { openWhenHidden: true });
  (await gateway.stream()).open().state(10).response.end();
  await done;
  assert.equal(gateway.waiting, 0);
});

test('fetch-event-source takes the id of an event that was cut off', LIMIT, async () => {
  const heard = [];
  const leaving = new AbortController();
  fetchEventSource(url, { openWhenHidden: true, signal: leaving.signal, onmessage: ({ event }) => heard.push(event) });
  const stream = (await gateway.stream()).open().state(10);
  await until(() => heard.includes('synced'));
  stream.raw(`event: delete\ndata: {}\nid: ${cursor(11)}\n`);
  stream.raw(''); // the blank line never comes
  await new Promise((resolve) => setTimeout(resolve, 100));
  stream.cut();
  assert.equal((await gateway.stream()).request.headers['last-event-id'], cursor(11));
  assert.ok(!heard.includes('delete'));
  leaving.abort();
});

test('fetch-event-source leaves while the tab is hidden', LIMIT, async () => {
  const leaving = new AbortController();
  fetchEventSource(url, { signal: leaving.signal });
  const stream = (await gateway.stream()).open().state(10);
  document.hidden = true;
  for (const listener of listeners) listener();
  await stream.closed;
  leaving.abort();
});

test('launchdarkly-eventsource leaves after the silence of Node’s agent', LIMIT, async (context) => {
  const agent = new http.Agent({ ...http.globalAgent.options, timeout: 100 }); // Node's own has 5 s
  assert.equal(http.globalAgent.options.timeout, 5000);
  const source = new launchdarkly.EventSource(url, { agent, initialRetryDelayMillis: 1 });
  context.after(() => source.close());
  const errors = [];
  source.onerror = ({ message }) => errors.push(message);
  await (await gateway.stream()).open({ retry: 1 }).state(10).closed;
  assert.match(errors[0], /^Read timeout/);
});

test('launchdarkly-eventsource ends at a 429, and reconnects after a 503', LIMIT, async () => {
  const source = new launchdarkly.EventSource(url, { initialRetryDelayMillis: 1 });
  assert.throws(() => source.emit('error', { type: 'error' })); // without a listener, it ends the program
  source.onerror = () => {};
  (await gateway.stream()).problem(503, 'unavailable');
  (await gateway.stream()).problem(429, 'too-many-streams');
  await until(() => source.readyState === 2);
});

test('launchdarkly-eventsource accepts every certificate', LIMIT, (context) => {
  let asked;
  context.mock.method(https, 'request', (_, options) => {
    asked = options;
    return Object.assign(new EventEmitter(), { end() {}, destroy() {} });
  });
  for (const [options, verified] of [[{}, false], [{ rejectUnauthorized: true }, true]]) {
    new launchdarkly.EventSource('https://127.0.0.1/', options).close();
    assert.equal(asked.rejectUnauthorized, verified);
  }
});
