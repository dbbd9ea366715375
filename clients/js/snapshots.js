// What react.js and vue.js have in common: a mirror as a value that is never changed, at most once for each frame that
// the browser draws.

const NO_ENTRIES = new Map();
export const NOTHING = Object.freeze({
  entries: NO_ENTRIES, state: 'connecting', reason: null, problem: null, revision: 0, retryAt: null, lastHeard: null,
  provenAt: null, mirror: null,
});

const later = globalThis.requestAnimationFrame?.bind(globalThis) ?? ((draw) => setTimeout(draw, 16));

// Calls `show` with each snapshot, until the function that is returned closes the mirror. `entries` is a new Map
// exactly when a key has changed.
export function observe(mirror, show) {
  let [entries, changed, waiting] = [NO_ENTRIES, false, false];
  const draw = () => {
    waiting = false;
    if (mirror.state === 'closed') return;
    if (changed) entries = new Map(mirror.entries);
    changed = false;
    const { state, reason, problem, revision, retryAt, lastHeard, provenAt } = mirror;
    show({ entries, state, reason, problem, revision, retryAt, lastHeard, provenAt, mirror });
  };
  mirror.addEventListener('changes', () => { changed = true; });
  mirror.addEventListener('state', () => {
    if (!waiting) later(draw);
    waiting = true;
  });
  return () => mirror.close();
}
