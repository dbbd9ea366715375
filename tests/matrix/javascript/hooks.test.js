// The hook of React and the composable of Vue, in the DOM of happy-dom, with a gateway that the test plays.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Window } from 'happy-dom';
import { Gateway, until } from './playing.js'; // that of clients/js/test

const { fetch, Event, EventTarget, URL } = globalThis; // Node's own: happy-dom asks as a browser does, which is not meant
const window = new Window();
Object.assign(globalThis, { window, document: window.document, Node: window.Node, Element: window.Element });
if (!globalThis.navigator) globalThis.navigator = window.navigator; // Node has one since 21
Object.assign(globalThis, { HTMLElement: window.HTMLElement, SVGElement: window.SVGElement, fetch, Event, EventTarget, URL });
globalThis.requestAnimationFrame = (draw) => setTimeout(draw, 5);
globalThis.IS_REACT_ACT_ENVIRONMENT = false;

const LIMIT = { timeout: 60_000 };
let gateway;
before(async () => { gateway = await Gateway.start(); });
after(() => gateway.stop());

const place = () => window.document.body.appendChild(window.document.createElement('main'));

test('React: renders what is there, follows its arguments, and ends with the component', LIMIT, async () => {
  const { createElement: h, memo, StrictMode, useState } = await import('react');
  const { createRoot } = await import('react-dom/client');
  const { renderToString } = await import('react-dom/server');
  const { useMirror } = await import('etcd-watch-client/react');

  const rendered = [];
  const Row = memo(({ entry }) => {
    rendered.push(entry.key);
    return h('li', null, `${entry.key}=${entry.value}`);
  });
  let follow;
  let token = 'one';
  function Table() {
    const [prefix, setPrefix] = useState('/c/');
    follow = setPrefix;
    const { entries, state, reason, mirror } = useMirror(gateway.url, prefix, { token: () => token });
    return h('div', null, h('p', null, `${state} ${reason} ${mirror !== null}`),
      [...entries.values()].map((entry) => h(Row, { key: entry.key, entry })));
  }
  assert.equal(renderToString(h(Table)), '<div><p>connecting null false</p></div>');

  const main = place();
  const root = createRoot(main);
  root.render(h(StrictMode, null, h(Table)));
  let stream;
  const open = async () => {
    stream = (await gateway.stream()).open().state(10, { a: '1', b: '2' });
  };
  await open();
  let live = false;
  stream.closed.then(() => live || open()); // StrictMode mounts twice: the first mirror is closed, if it asked at all
  await until(() => main.textContent === 'live null true/c/a=1/c/b=2');
  live = true;
  rendered.length = 0;
  stream.put('/c/a', 'one', 11, { more: true }).put('/c/c', '3', 11).put('/c/c', 'three', 12);
  await until(() => main.textContent === 'live null true/c/a=one/c/b=2/c/c=three');
  assert.ok(!rendered.includes('/c/b'), 'an entry that did not change is the same object');
  token = 'two';
  stream.response.end();
  await until(() => main.textContent.startsWith('disconnected disconnected true/c/a=one'));
  const next = await gateway.stream();
  assert.equal(next.request.headers.authorization, 'Bearer two');

  follow('/d/');
  await next.closed;
  const other = await gateway.stream();
  assert.equal(other.query.get('prefix'), '/d/');
  other.open().state(20);
  await until(() => main.textContent === 'live null true');
  root.unmount();
  await other.closed;
  assert.equal(gateway.waiting, 0);
});

test('Vue: renders what is there, follows its arguments, and ends with the component', LIMIT, async () => {
  const { createApp, createSSRApp, effectScope, h, ref } = await import('vue');
  const { renderToString } = await import('vue/server-renderer');
  const { useMirror } = await import('etcd-watch-client/vue');

  const prefix = ref('/c/');
  const Table = {
    setup() {
      const shown = useMirror(gateway.url, () => prefix.value);
      return () => h('p', `${shown.value.state} ${[...shown.value.entries.values()].map(({ key, value }) => `${key}=${value}`)}`);
    },
  };
  assert.equal(await renderToString(createSSRApp(Table)), '<p>connecting </p>');
  const main = place();
  const app = createApp(Table);
  app.mount(main);
  const stream = (await gateway.stream()).open().state(10, { a: '1' });
  await until(() => main.textContent === 'live /c/a=1');
  stream.put('/c/b', '2', 11, { more: true }).delete('/c/a', 11);
  await until(() => main.textContent === 'live /c/b=2');
  prefix.value = '/d/';
  await stream.closed;
  const other = await gateway.stream();
  assert.equal(other.query.get('prefix'), '/d/');
  app.unmount();
  await other.closed;

  const scope = effectScope();
  const shown = scope.run(() => useMirror(gateway.url, '/e/', { keysOnly: true }));
  const third = await gateway.stream();
  assert.equal(third.query.get('keys_only'), '1');
  third.open().state(30, { a: '' });
  await until(() => shown.value.state === 'live');
  scope.stop();
  await third.closed;
  assert.equal(gateway.waiting, 0);
});
