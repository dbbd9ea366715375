// A mirror as a composable for Vue. README.md shows it.
import { getCurrentInstance, onMounted, onScopeDispose, shallowRef, toValue, watch } from 'vue';
import { Mirror } from './etcd-watch-client.js';
import { NOTHING, observe } from './snapshots.js';

const direct = (...words) => new Mirror(...words);

export function useMirror(url, ranges, options = {}) {
  const shown = shallowRef(NOTHING);
  let stop = () => {};
  const start = () => {
    const { connect = direct, ...plain } = toValue(options);
    stop();
    shown.value = NOTHING;
    stop = observe(connect(toValue(url), toValue(ranges), plain), (snapshot) => { shown.value = snapshot; });
  };
  const follow = () => watch(() => JSON.stringify([toValue(url), toValue(ranges), toValue(options)]), start, { immediate: true });
  onScopeDispose(() => stop());
  if (getCurrentInstance()) onMounted(follow); // a server renders without a connection
  else follow();
  return shown;
}
