// What the banner says: whether what is shown is current, why not, how old it is, and when the next try is.

import { duration } from './format.js';

const REASONS = { // the words of the gateway's stream, of etcd and of the client, for people
  drain: 'This instance of the gateway is stopping.',
  'max-age': 'The stream has reached its greatest age.',
  unavailable: 'The gateway cannot get the state from etcd.',
  overloaded: 'The gateway has no room for another stream.',
  'too-large': 'This range is larger than the gateway may hold. Follow a smaller one.',
  'too-slow': 'This browser takes the state too slowly. Follow a smaller range.',
  'revision-not-reached': 'The gateway has not reached the revision that was asked for.',
  revoked: 'You may no longer read this.',
  'scope-changed': 'You may read less than before.',
  expired: 'The token has ended. Enter a new one.',
  disconnected: 'The connection to the gateway is broken.',
  'no answer': 'The gateway does not answer.',
  silent: 'The gateway has sent nothing for too long.',
};

const IDLE = { state: 'live', reason: '', problem: null };
const START = 1500; // ms for which a start needs no explanation

// A word at the start begins with a capital; a name (`prefix=/svc/`, `etcd`) stays as it is.
const sentence = (text) => text.replace(/^(?!etcd )[a-z]+ /, (word) => word[0].toUpperCase() + word.slice(1));

/** A reason as a sentence; what stands after the colon of a known one is for programmers. */
export const explain = (reason) => REASONS[reason.split(':')[0]] ?? sentence(reason);

// gRPC's code, and the way to its cause: "unavailable: failed to connect to all addresses; last error: UNKNOWN: ipv4:…: Connection refused".
const GRPC = /^[a-z_]+: (failed to connect to all addresses; last error: .*: )?/;

/** Whether what is shown must be dropped: its reader may no longer read it. A token that has ended may be followed by another. */
export const mustDrop = ({ state, reason, problem }) =>
  reason?.startsWith('revoked') || (state === 'failed' && problem?.status === 403);

/**
 * The banner, or null if everything shown is current: {level: "wait" | "stale" | "error", title, detail, age, next}.
 *
 * `client`: {state, reason, problem, retryAt, synced}, or null while nothing is followed; `etcd`: what /readyz says of
 * etcd, if it is known, and when that `began`; `silentFor`: ms for which the gateway has answered no probe; `nextProbe`: when the page asks the
 * gateway again; `currentAt`: when what is shown was last known to be current; `startedAt`: when the page began to
 * follow; `now`: all times in ms.
 */
export function bannerOf({ client, etcd = null, silentFor = 0, nextProbe = 0, currentAt = 0, startedAt = 0, now }) {
  const etcdAway = etcd !== null && etcd.state !== 'ready';
  if (!client && !etcdAway && !silentFor) return null;
  const lasted = silentFor ? silentFor : etcdAway ? now - etcd.began : 0;
  const since = lasted ? `For ${duration(lasted)}. ` : '';
  const probing = etcdAway || silentFor ? `The page asks again ${nextProbe > now ? `in ${duration(nextProbe - now + 999)}` : 'now'}.` : '';
  if (!client) return { ...cause(IDLE, etcd, etcdAway, silentFor), age: since.trim(), next: probing };
  const starts = ['connecting', 'syncing'].includes(client.state) && now - startedAt < START;
  if (!client.problem && !etcdAway && !silentFor && (client.state === 'live' || starts)) return null;
  const next = client.retryAt > now ? `Next try in ${duration(client.retryAt - now + 999)}.`
    : client.state === 'failed' ? '' : probing || (['disconnected', 'connecting'].includes(client.state) ? 'Trying now.' : '');
  // The worker that shares the stream goes on speaking when the gateway is silent.
  const age = since + (client.synced ? `What you see is ${duration(Math.max(now - currentAt, lasted))} old.` : 'There is nothing to show yet.');
  return { ...cause(client, etcd, etcdAway, silentFor), age, next };
}

function cause(client, etcd, etcdAway, silentFor) {
  const { state, reason, problem } = client;
  if (state === 'failed' || (problem && problem.status < 500 && problem.status !== 429))
    return { level: 'error', title: problem?.title ?? 'The gateway refuses this', detail: sentence(problem?.detail ?? '') || explain(reason) };
  if (silentFor)
    return { level: 'error', title: 'The gateway does not answer', detail: '' };
  if (etcdAway)
    return { level: 'stale', title: 'etcd is out of reach', detail: etcd.reason ? `${sentence(etcd.reason.replace(GRPC, ''))}.` : '' };
  // A mirror that shares one connection with other tabs is `stale` while that connection is broken.
  const broken = state === 'disconnected' || /^(disconnected|no answer|silent|HTTP )/.test(reason);
  if (reason.startsWith('expired')) return { level: 'error', title: 'Not connected', detail: REASONS.expired };
  if (state === 'stale' && !broken)
    return { level: 'stale', title: 'Not proven to be current', detail: explain(reason) };
  if (broken)
    return { level: 'error', title: 'Not connected', detail: problem?.detail ?? explain(reason || 'disconnected') };
  return { level: 'wait', title: problem?.title ?? 'Waiting for the gateway', detail: problem?.detail ?? explain(reason) };
}
