// What the tests of the mirror have in common: a gateway that the test plays, and mirrors that end with the test.
import { after, afterEach, before, beforeEach, mock } from 'node:test';
import { Mirror } from '../etcd-watch-client.js';
import { Gateway, until } from './playing.js';

export const LIMIT = { timeout: 60_000 };
export const gateway = await Gateway.start();
const mirrors = [];

after(() => gateway.stop());
beforeEach(() => { mock.method(Math, 'random', () => 0); }); // the shortest delays
afterEach(() => {
  for (const mirror of mirrors.splice(0)) mirror.close();
  mock.restoreAll();
});

// Closes the mirror at the end of the test.
export function kept(mirror) {
  mirrors.push(mirror);
  return mirror;
}

export const follow = (options, ranges = '/c/') => kept(new Mirror(gateway.url, ranges, options));
export const turns = (mirror, state) => until(() => mirror.state === state);

export function hear(mirror, type) {
  const heard = [];
  mirror.addEventListener(type, ({ detail }) => heard.push(detail));
  return heard;
}
