// An EventSource for Node, which has none: as much of the standard as docs/examples/mirror.js and the how-tos use. Browsers
// are tested elsewhere, with their own.
globalThis.EventSource = class extends EventTarget {
  readyState = 0;
  #controller = new AbortController();
  constructor(url) {
    super();
    this.#read(url).catch(() => {}).finally(() => {
      if (this.readyState === 2) return;
      this.readyState = 2; // never reconnects: a client must open a new one
      this.onerror?.(new Event('error'));
    });
  }
  close() {
    this.readyState = 2;
    this.#controller.abort();
  }
  async #read(url) {
    const headers = { Accept: 'text/event-stream' };
    const { body } = await fetch(url, { headers, signal: this.#controller.signal });
    let rest = '', lastEventId = '';
    for await (const chunk of body.pipeThrough(new TextDecoderStream())) {
      const blocks = (rest + chunk).split('\n\n');
      rest = blocks.pop();
      for (const block of blocks) {
        const of = (name) => block.split('\n').find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
        lastEventId = of('id') ?? lastEventId;
        const event = Object.assign(new Event(of('event') ?? 'message'), { data: of('data'), lastEventId });
        if (event.data !== undefined && this.readyState !== 2) this.dispatchEvent(event);
      }
    }
  }
};
