import type { Range } from "./etcd-watch-client.js";
import type { HookOptions, Snapshot } from "./snapshots.js";
export type { HookOptions, Snapshot };

/**
 * Follows the ranges while the component is mounted. It renders at most once for each frame of the browser.
 *
 * The mirror is another one when `url`, `ranges` or an option has another value. Functions among the options may be
 * new with each render: the latest one is called.
 */
export function useMirror<T = unknown>(
  url: string,
  ranges: Range | readonly Range[],
  options?: HookOptions<T>,
): Snapshot<T>;
