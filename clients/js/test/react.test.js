// The hook for React, with a React that only hands on what it is given. `make matrix` runs the hook in React itself.
import assert from 'node:assert/strict';
import { register } from 'node:module';
import { test } from 'node:test';
import { LIMIT, gateway } from './following.js';
import { until } from './playing.js';

const address = (code) => `data:text/javascript,${encodeURIComponent(code)}`;
const REACT = address(`
  export const useMemo = (make) => make();
  export const useRef = (current) => ({ current });
  export const useEffect = (work) => work();
  export const useSyncExternalStore = (subscribe, read) => ({ subscribe, read });
`);
register(address(`
  const react = { url: ${JSON.stringify(REACT)}, shortCircuit: true };
  export const resolve = (name, context, next) => (name === 'react' ? react : next(name, context));
`));
const { useMirror } = await import('../react.js');

test('a component that is hidden and shown again is not live before its new mirror is', LIMIT, async () => {
  const { subscribe, read } = useMirror(gateway.url, '/c/');
  assert.equal(read().state, 'connecting');
  let leave = subscribe(() => {});
  (await gateway.stream()).open().state(10, { a: '1' });
  await until(() => read().state === 'live');
  leave();
  assert.deepEqual([read().state, read().mirror, read().entries.size], ['connecting', null, 0]);
  leave = subscribe(() => {});
  const stream = await gateway.stream();
  assert.notEqual(read().state, 'live');
  stream.open().state(11, { b: '2' });
  await until(() => read().state === 'live');
  assert.deepEqual([...read().entries.keys()], ['/c/b']);
  leave();
});
