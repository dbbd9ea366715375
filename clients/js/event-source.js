// Server-Sent Events, for places in which streams of NDJSON do not arrive piece by piece: functions like fetch(), which
// answer with the lines of NDJSON that the gateway would have sent.
import { written } from './written.js';

const SSE = 'text/event-stream';
const TYPES = ['reset', 'put', 'delete', 'synced', 'bookmark', 'status', 'close'];

export function byEvents(fetch, { transport, format, token, EventSource = globalThis.EventSource }) {
  const isEventSource = transport === 'eventsource';
  if (!isEventSource && format === 'sse') return byFetch(fetch);
  if (isEventSource && !token && EventSource) return byEventSource(fetch, EventSource);
  const why = 'an EventSource has no token, and Node has none; use another transport';
  throw { reason: isEventSource ? why : `there is no transport ${transport} with format ${format}`, final: true };
}

// An event as a line. What cannot be read stays as it is: the mirror says what it was.
function lineOf(data, cursor) {
  try {
    return `${cursor ? JSON.stringify({ ...JSON.parse(data), cursor }) : data}\n`;
  } catch {
    return `${data}\n`;
  }
}

// Makes lines of the pieces of a stream.
class Parser {
  wait = 0; // ms before the next connection, as `retry` says
  #rest = '';
  #data = null;
  #cursor = '';

  // There is a line for each piece: also what says only that the gateway lives is heard.
  linesOf(piece) {
    this.#rest += piece;
    if (!piece.includes('\n')) return '\n'; // do not split a long line again with each of its pieces
    const fields = this.#rest.split('\n');
    this.#rest = fields.pop();
    return `\n${fields.map((field) => this.#take(field)).join('')}`;
  }

  #take(field) {
    const [, name, value] = /^(\w*):? ?(.*)/s.exec(field);
    if (name === 'data') [this.#data, this.#cursor] = [value, ''];
    else if (name === 'id') this.#cursor = value.trim(); // always the last line of its block
    else if (name === 'retry') this.wait = Number(value);
    else if (!field.trim() && this.#data !== null) {
      const line = lineOf(this.#data, this.#cursor);
      this.#data = null;
      return line;
    }
    return '';
  }
}

const inSse = (url) => url.replace('format=ndjson', 'format=sse');

const byFetch = (fetch) => async (url, { headers, ...init }) => {
  const answer = await fetch(inSse(url), { ...init, headers: { ...headers, Accept: SSE } });
  if (answer.status !== 200 || !answer.headers.get('content-type')?.startsWith(SSE)) return answer;
  const { response, write, fail } = written(answer.headers);
  const [parser, decoder, reader] = [new Parser(), new TextDecoder('utf-8', { fatal: true }), answer.body.getReader()];
  const forward = async () => {
    for (let piece; (piece = (await reader.read()).value);) write(parser.linesOf(decoder.decode(piece, { stream: true })));
    throw {}; // the end is a disconnect, too
  };
  forward().catch(({ message, cause }) => fail({ message, cause, wait: parser.wait }));
  return response;
};

// EventSource reconnects by itself, with a header that overrides the mirror's cursor. So it is closed after each error:
// one way back for all transports.
const byEventSource = (fetch, EventSource) => (url, init) => new Promise((resolve, reject) => {
  init.signal.throwIfAborted();
  const source = new EventSource(inSse(url));
  const { response, write, fail } = written();
  init.signal.addEventListener('abort', () => source.close());
  const end = () => {
    source.close();
    reject({});
    fail({});
  };
  source.onopen = () => {
    source.onerror = end;
    resolve(response);
  };
  source.onerror = () => {
    // CLOSED (2): the answer is not a stream. An EventSource does not say what it is: fetch() does.
    if (source.readyState === 2) resolve(fetch(url, init));
    end();
  };
  for (const type of TYPES) source.addEventListener(type, ({ data, lastEventId }) => write(lineOf(data, lastEventId)));
});
