// A gateway that a test plays: each connection waits for what the test sends.
import { once } from 'node:events';
import { createServer } from 'node:http';

const { setTimeout } = globalThis; // a test may replace the global one

export const EPOCH = '3f9ac17b';
export const cursor = (revision) => `${EPOCH}-${revision}`;

class Stream {
  constructor(request, response) {
    const { searchParams } = new URL(request.url, 'http://gateway');
    Object.assign(this, { request, response, query: searchParams, sse: searchParams.get('format') !== 'ndjson' });
    this.closed = once(response, 'close');
  }

  // Sends the head, and the first bytes.
  open({ retry = 10, ...headers } = {}) {
    const kind = this.sse ? 'text/event-stream' : 'application/x-ndjson';
    this.response.writeHead(200, { 'Content-Type': kind, ...headers });
    this.raw(this.sse ? `retry: ${retry}\n: connected\n` : '\n');
    return this;
  }

  raw(text) {
    this.response.write(text);
    return this;
  }

  // Sends an event; `at` is the revision of its cursor.
  send(type, members, at) {
    const data = JSON.stringify({ type, ...members, ...(at !== undefined && !this.sse && { cursor: cursor(at) }) });
    if (!this.sse) return this.raw(`${data}\n`);
    return this.raw(`event: ${type}\ndata: ${data}\n${at === undefined ? '' : `id: ${cursor(at)}\n`}\n`);
  }

  put(key, value, revision, { live = true, ...more } = {}) {
    const item = { key, value, create_revision: 1, mod_revision: revision, version: 1, ...more };
    return this.send('put', item, live && !more.more ? revision : undefined);
  }

  delete(key, revision) {
    return this.send('delete', { key, mod_revision: revision }, revision);
  }

  // Sends a whole state.
  state(revision, values = {}, { reason = 'initial', heartbeat = 15 } = {}) {
    this.send('reset', { reason, ranges: ['prefix=/c/'] }, 0);
    for (const [name, value] of Object.entries(values)) this.put(`/c/${name}`, value, revision, { live: false });
    return this.synced(revision, heartbeat);
  }

  synced(revision, heartbeat = 15) {
    return this.send('synced', { revision, heartbeat }, revision);
  }

  answer(status, headers = {}, body = '') {
    this.response.writeHead(status, headers);
    this.response.end(body);
  }

  problem(status, code, headers = {}) {
    const body = JSON.stringify({ status, code, detail: 'no' });
    this.answer(status, { 'Content-Type': 'application/problem+json', ...headers }, body);
  }

  cut() {
    this.request.socket.destroy();
  }
}

export class Gateway {
  #waiting = [];
  #takers = [];

  static async start() {
    const gateway = new Gateway();
    gateway.server = createServer((request, response) => {
      const stream = new Stream(request, response);
      const take = gateway.#takers.shift();
      if (take) take(stream);
      else gateway.#waiting.push(stream);
    });
    gateway.server.listen(0, '127.0.0.1');
    await once(gateway.server, 'listening');
    gateway.url = `http://127.0.0.1:${gateway.server.address().port}`;
    return gateway;
  }

  // The next stream that a client asks for.
  stream() {
    const stream = this.#waiting.shift();
    return stream ? Promise.resolve(stream) : new Promise((take) => this.#takers.push(take));
  }

  get waiting() {
    return this.#waiting.length;
  }

  stop() {
    this.server.close();
    this.server.closeAllConnections();
  }
}

// Waits until the condition is true. The test runner's own timeout ends a wait that hangs.
export const until = async (condition) => {
  for (;;) {
    const value = condition();
    if (value) return value;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
};
