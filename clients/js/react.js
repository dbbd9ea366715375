// A mirror as a hook for React. README.md shows it.
import { useEffect, useMemo, useRef, useSyncExternalStore } from 'react';
import { Mirror } from './etcd-watch-client.js';
import { NOTHING, observe } from './snapshots.js';

const direct = (...words) => new Mirror(...words);

export function useMirror(url, ranges, options = {}) {
  const latest = useRef(options);
  useEffect(() => { latest.current = options; });
  const key = JSON.stringify([url, ranges, options]); // functions are not part of it: the latest ones are called
  const store = useMemo(() => {
    let shown = NOTHING;
    return {
      subscribe(notify) {
        const { connect = direct, token, decode, ...plain } = latest.current;
        const mirror = connect(url, ranges, {
          ...plain,
          token: typeof token === 'function' ? () => latest.current.token() : token,
          decode: decode && ((...words) => latest.current.decode(...words)),
        });
        const close = observe(mirror, (snapshot) => {
          shown = snapshot;
          notify();
        });
        return () => {
          close();
          shown = NOTHING; // who is shown again (<Activity>) must not show what was live then
        };
      },
      read: () => shown,
    };
  }, [key]);
  return useSyncExternalStore(store.subscribe, store.read, () => NOTHING);
}
