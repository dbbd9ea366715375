import type { MaybeRefOrGetter, ShallowRef } from "vue";
import type { Range } from "./etcd-watch-client.js";
import type { HookOptions, Snapshot } from "./snapshots.js";
export type { HookOptions, Snapshot };

/**
 * Follows the ranges while the component is mounted, or until the effect scope ends. The snapshot is replaced at most
 * once for each frame of the browser. The mirror is another one when `url`, `ranges` or an option has another value.
 */
export function useMirror<T = unknown>(
  url: MaybeRefOrGetter<string>,
  ranges: MaybeRefOrGetter<Range | readonly Range[]>,
  options?: MaybeRefOrGetter<HookOptions<T>>,
): Readonly<ShallowRef<Snapshot<T>>>;
