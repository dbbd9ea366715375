// Whether what is shown is current: a word in the head of the page, and a banner if it is not.

import { bannerOf } from '../model/condition.js';
import { count } from '../model/format.js';
import { $, setText } from './dom.js';

const WORDS = { connecting: 'connecting', syncing: 'loading', live: 'live', stale: 'stale', disconnected: 'not connected', failed: 'refused', closed: 'closed' };

export class Status {
  /** `onretry()`, `ontoken()`: the user wants to try again, or to give a token. */
  constructor(onretry, ontoken) {
    $('#banner button').addEventListener('click', () => (this.#needsToken ? ontoken() : onretry()));
  }

  #needsToken = false;

  /** `session` is null at the start page. */
  draw(session, probe, now) {
    const around = { etcd: probe.etcd, silentFor: probe.silentFor(now), nextProbe: probe.next, now };
    $('#state').hidden = !session;
    if (!session) return this.#banner(bannerOf({ client: null, ...around }));
    const { mirror, synced, currentAt, startedAt } = session, { state, reason, problem, retryAt } = mirror;
    const client = { state, reason: reason ?? '', problem, retryAt: retryAt ?? 0, synced };
    const banner = bannerOf({ client, ...around, currentAt, startedAt });
    const shown = state === 'live' && banner ? 'stale' : state;
    $('#state').className = shown;
    setText($('#state b'), WORDS[shown]);
    setText($('#state span'), mirror.revision ? `revision ${count(mirror.revision)}` : '');
    this.#needsToken = problem?.status === 401 || Boolean(reason?.startsWith('expired'));
    this.#banner(banner, this.#needsToken || retryAt > now || state === 'disconnected' || state === 'failed');
  }

  #banner(banner, canRetry = false) {
    $('#banner').hidden = !banner;
    document.title = `${banner ? '⚠ ' : ''}${document.title.replace(/^⚠ /, '')}`; // so that a tab in the background says it
    if (!banner) return;
    $('#banner').className = banner.level;
    setText($('#banner b'), `${banner.title}.`);
    for (const part of ['detail', 'age', 'next']) setText($(`#banner .${part}`), banner[part]);
    $('#banner button').hidden = !canRetry;
    setText($('#banner button'), this.#needsToken ? 'Enter a token' : 'Try now');
  }
}
