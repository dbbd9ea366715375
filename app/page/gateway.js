// Requests to the gateway beside the stream: they are asked once, and never wait long.

const TIMEOUT = 10_000; // ms
export const AGAIN = 3000; // ms, after which what may pass is asked again

/** Whether a request with this answer may have another answer later. */
export const mayPass = (status) => status === 0 || status === 429 || status >= 500;

export class Gateway {
  token = '';
  ahead = 0; // ms by which the clock of this browser is ahead of the gateway's, as far as an answer has said
  /** `home`: the page's own folder, under whatever path a proxy serves it. */
  constructor(home) { this.home = home; }

  /** {status, body}: the JSON of an answer, also of a problem. status 0: there is no answer, or not the gateway's. */
  async ask(path, timeout = TIMEOUT) {
    try {
      const answer = await fetch(this.home + path, {
        cache: 'no-store', signal: AbortSignal.timeout(timeout),
        headers: this.token ? { Authorization: `Bearer ${this.token}` } : {},
      });
      const kind = answer.headers.get('content-type') ?? '', date = Date.parse(answer.headers.get('date'));
      if (date) this.ahead = Date.now() - date;
      if (/json/.test(kind)) return { status: answer.status, body: await answer.json() };
      return { status: answer.ok ? 0 : answer.status, body: { title: 'Not the gateway’s answer', detail: `HTTP ${answer.status}, ${kind}` } };
    } catch {
      return { status: 0, body: { title: 'The gateway does not answer', detail: 'Is it running? The page asks again.' } };
    }
  }

  /** What the reader may read, or null if that is not known. What may pass is asked again, as long as `wanted()`. */
  async access(wanted) {
    for (;;) {
      const { status, body } = await this.ask('v1/access');
      if (!mayPass(status)) return status === 200 ? body : null;
      do {
        await new Promise((again) => setTimeout(again, AGAIN));
        if (!wanted()) return null;
      } while (globalThis.document?.hidden); // a tab in the background does not ask
    }
  }
}

const PAUSE = 2000; // ms between two probes
const QUIET = 1000; // ms without a byte on the stream, after which the gateway is probed although the stream is live

/**
 * Finds out what the stream cannot say: that the gateway does not answer at all (a stream is silent for three heartbeats
 * before it says so), and that etcd is away (the gateway says so on a stream only after GATEWAY_STALE_AFTER).
 */
export class Probe {
  etcd = null; // {state, since, reason, began}, if this port serves /readyz
  #failedSince = 0; #running = false; #last = 0;

  constructor(home, readyz) { [this.home, this.path] = [home, readyz ? 'readyz' : '']; }

  /** ms for which no probe was answered. */
  silentFor(now) { return this.#failedSince && now - this.#failedSince; }

  /** When the gateway is probed next, unless the stream says that all is well. */
  get next() { return this.#last + PAUSE; }

  /** Probe if it is time; true if something was learned. */
  async tick(now, { live, lastHeard }) {
    if (document.hidden || this.#running || now - this.#last < PAUSE) return false;
    if (live && now - lastHeard < QUIET && !this.#failedSince && !this.#away) return false;
    [this.#running, this.#last] = [true, now];
    try {
      const options = { method: this.path ? 'GET' : 'HEAD', cache: 'no-store', signal: AbortSignal.timeout(PAUSE) };
      const answer = await fetch(this.home + this.path, options);
      const ours = /json/.test(answer.headers.get('content-type') ?? '');
      if (answer.status >= 500 && !ours) throw answer; // a proxy's page: no gateway is behind it
      this.etcd = this.path && ours ? this.#timed((await answer.json()).etcd, answer.headers.get('date')) : null;
      this.#failedSince = 0;
    } catch {
      this.#failedSince ||= now;
    }
    this.#running = false;
    return true;
  }

  /**
   * With `began`: `since` by the clock of this browser, which may differ from the gateway's. Without a date, the time
   * counts from the first probe that saw it.
   */
  #timed(etcd, date) {
    if (!etcd) return null;
    const age = Date.parse(date) - Date.parse(etcd.since);
    return { ...etcd, began: this.etcd?.since === etcd.since ? this.etcd.began : this.#last - (age > 0 ? age : 0) };
  }

  get #away() { return this.etcd !== null && this.etcd.state !== 'ready'; }
}

const BETWEEN = 5000; // ms between two answers of /v1/feeds: with an audit log, each is a line there
const SLOW = 20; // and at least so many times as long as the last answer took

/** Asks /v1/feeds while the page is seen. */
export class SharingFeed {
  answer = null; problem = null;
  #next = 0; #running = false; #turn = 0;

  constructor(gateway, served) { [this.gateway, this.served] = [gateway, served]; }

  /** Ask at the next tick. */
  soon() { if (this.#next < Infinity) this.#next = 0; }

  /** There is another token: what was answered, or is about to be answered, is not for it. */
  forget() { [this.answer, this.problem, this.#next, this.#turn] = [null, null, 0, this.#turn + 1]; }

  /** Ask if it is time; true if there is a new answer. */
  async tick(now) {
    if (!this.served || document.hidden || this.#running || now < this.#next) return false;
    this.#running = true;
    const started = performance.now(), turn = this.#turn, { status, body } = await this.gateway.ask('v1/feeds');
    this.#running = false;
    if (turn !== this.#turn) return false;
    [this.answer, this.problem] = status === 200 ? [body, null] : [null, { status, ...body }];
    // A refusal stays one until there is another token.
    this.#next = status === 401 || status === 403 ? Infinity : Date.now() + Math.max(BETWEEN, SLOW * (performance.now() - started));
    return true;
  }
}
