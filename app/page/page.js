// The page at /: puts its parts together. The address says what is followed: #prefix=/svc/&key=/leader, or the same as a
// query. Everything that changes is drawn once a frame; ages and countdowns once a second.

import './client/tokens.js'; // before a token is given: Firefox never asks again for a file that was refused once
import { Gateway, Probe, SharingFeed } from './gateway.js';
import { contains, curlWatch, label, parse, query, read } from './model/ranges.js';
import { Session } from './session.js';
import { Address } from './view/address.js';
import { $, copyButton, h, redraw } from './view/dom.js';
import { EventLog } from './view/events.js';
import { Folders } from './view/folders.js';
import { Keys } from './view/keys.js';
import { followPanes } from './view/panes.js';
import { drawPicture, drawRefusal } from './view/sharing.js';
import { Recent, Start } from './view/start.js';
import { Status } from './view/status.js';
import { followTheme } from './view/theme.js';
import { Token } from './view/token.js';
import { Value } from './view/value.js';

const home = new URL('.', document.baseURI).href; // the page's own folder, whatever follows it in the address
const admin = Boolean($('nav a[href="v1/feeds"]')); // whether /v1/feeds and /readyz are served on this port
const gateway = new Gateway(home), probe = new Probe(home, admin), feeds = new SharingFeed(gateway, admin);
// All tabs share one connection, by this worker: over HTTP/1.1 a browser has six connections to a host, for all tabs.
const workerAddress = new URL('client/shared-worker.js', import.meta.url).href;
const worker = globalThis.trustedTypes?.createPolicy('worker', { createScriptURL: () => workerAddress }).createScriptURL('') ?? workerAddress;
const recent = new Recent(), start = new Start(gateway, recent);
let session = null, frame = 0, turn = 0;

const value = new Value(home), panes = followPanes();
const keys = new Keys({
  onselect: (key) => { value.show(key); if (key !== null) panes.show('value'); },
  onenter: () => { panes.show('value'); $('#value-content')?.focus(); },
});
const folders = new Folders((path) => { keys.scope = path; panes.show('keys'); });
const events = new EventLog((key) => { keys.select(key); keys.draw(new Set()); });
const token = new Token(() => { gateway.token = token.value; feeds.forget(); route(); });
const status = new Status(() => {
  if (session?.mirror.problem?.status === 403) return void route(); // the keys may be permitted now, and the values not
  session?.mirror.reconnect();
  later();
}, () => token.open());
const address = new Address((ranges) => {
  // A whole address: otherwise a ?prefix= that the page was opened with would remain beside the new ranges.
  const target = `${location.pathname}${ranges.length ? `#${query(ranges)}` : ''}`;
  if (new URL(target, location.href).href !== location.href) history.pushState(null, '', target);
  route();
});
gateway.token = token.value;

/** The ranges of the address. A fragment is newer than a query. */
function asked() {
  const fragment = read(location.hash);
  return fragment.length ? fragment : read(location.search);
}

async function route() {
  const ranges = asked(), now = ++turn;
  session?.close();
  session = null;
  start.stop();
  address.show(ranges);
  document.title = `${ranges.length ? `${ranges.map(label).join(' + ')} · ` : ''}etcd-watch-gateway`;
  $('#start').hidden = ranges.length > 0;
  $('#browse').hidden = $('#foot').hidden = $('.skip').hidden = !ranges.length;
  document.body.classList.toggle('browsing', ranges.length > 0);
  panes.enable(ranges.length > 0);
  drawSharing();
  if (!ranges.length) {
    if (document.activeElement === document.body) $('#add').focus();
    const body = await start.show();
    if (now !== turn) return; // another address has its own answer
    take(body);
    return later();
  }
  recent.add(query(ranges));
  follow(ranges, false);
  // A stream of values that is permitted needs no answer.
  const body = await gateway.access(() => now === turn && !session?.synced);
  if (now !== turn || !body) return;
  take(body);
  // Whoever may read only the keys of a range is refused its values.
  const readable = body.read.map(parse), bare = body.keys_only.map(parse);
  const within = (list) => (range) => list.some((one) => contains(one, range));
  if (!ranges.every(within(readable)) && ranges.every(within([...readable, ...bare]))) follow(ranges, true);
}

function follow(ranges, keysOnly) {
  session?.close();
  session = new Session(home, ranges, { token: token.value, keysOnly, worker, onchange: later, onrevoked: route });
  for (const view of [folders, keys, value, events]) view.start(session);
  const command = curlWatch(home, ranges, { token: Boolean(token.value), keysOnly });
  $('#foot').replaceChildren(h('code', { id: 'curl', tabindex: 0, role: 'group', 'aria-label': 'The same watch in a shell' }, command), copyButton('Copy', () => command));
  later();
}

function take(body) {
  token.expires = body?.expires ? Date.parse(body.expires) : null;
}

function later() { frame ||= requestAnimationFrame(draw); }

function draw() {
  frame = 0;
  if (session) {
    const dirty = session.takeDirty();
    if (dirty.all) feeds.soon(); // this browser has one more stream
    if (dirty.all || dirty.keys.size) {
      folders.draw(dirty.keys);
      keys.draw(dirty.keys);
      value.update();
      events.draw();
    } else if (dirty.state) keys.draw(dirty.keys);
  }
  status.draw(session, probe, Date.now());
}

function drawSharing() {
  const place = $(session || asked().length ? '#sharing .picture' : '#start-sharing .picture');
  const scrolled = place.querySelector('.channels')?.scrollTop ?? 0;
  redraw(place, feeds.answer ? drawPicture(feeds.answer, session?.ranges ?? null, ['live', 'stale', 'syncing'].includes(session?.mirror.state))
    : drawRefusal(admin, feeds.problem));
  const channels = place.querySelector('.channels');
  if (channels) channels.scrollTop = scrolled;
}

async function tick() {
  const now = Date.now();
  if (session?.mirror.expires) token.expires = Date.parse(session.mirror.expires);
  token.tick(now - gateway.ahead); // the end of a token is a time of the gateway's clock
  if (session) {
    keys.tick(now);
    value.tick(now);
  }
  const live = session?.mirror.state === 'live', lastHeard = session?.mirror.lastHeard ?? 0;
  void probe.tick(now, { live, lastHeard }).then((learned) => learned && later());
  void feeds.tick(now).then((answered) => answered && drawSharing());
  status.draw(session, probe, now);
}

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest('input, dialog')) return;
  const does = { '/': () => $(session ? '#filter' : '#add').focus(), '?': () => $('#help').showModal(), p: () => session && events.pause() }[event.key];
  if (!does) return;
  event.preventDefault();
  does();
});
$('#help-open').addEventListener('click', () => $('#help').showModal());
$('.skip').addEventListener('click', (event) => {
  event.preventDefault(); // the fragment of the address says what is followed
  panes.show('keys');
  $('#keys-grid').focus();
});
$('.brand').addEventListener('click', (event) => {
  event.preventDefault();
  history.pushState(null, '', location.pathname);
  route();
});
addEventListener('popstate', route); // back, forward, and a fragment that the user types
document.addEventListener('visibilitychange', tick);
followTheme();
setInterval(tick, 1000);
void route();
void tick();
