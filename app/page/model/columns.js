// The columns of the table: the members that most JSON values have.

import { membersOf } from './json.js';

const SAMPLE = 400; // entries
const COMMON = 0.6; // a member that so many of the sampled entries have is a column by itself
const MOST = 4; // columns that are chosen without being asked; more do not fit beside the key

/** The members of an entry's value, computed once for each entry: an entry never changes, a put makes another one. */
export class Members {
  #known = new WeakMap();
  of = (entry) => {
    let members = this.#known.get(entry);
    if (members === undefined) this.#known.set(entry, (members = membersOf(entry.value ?? '')));
    return members;
  };
}

/** An even sample of a Map's values. */
export function sampleOf(entries, most = SAMPLE) {
  const step = Math.max(1, Math.ceil(entries.size / most)), sample = [];
  let at = 0;
  for (const entry of entries.values()) if (at++ % step === 0) sample.push(entry);
  return sample;
}

/**
 * The members that occur in the sample, the most frequent first: {field, share, width}. `width` is the number of
 * characters of its longest text.
 */
export function fieldsOf(sample, members) {
  const found = new Map();
  for (const entry of sample)
    for (const [field, { text }] of members(entry) ?? []) {
      const one = found.get(field) ?? { field, share: 0, width: 0 };
      found.set(field, { field, share: one.share + 1 / sample.length, width: Math.max(one.width, text.length) });
    }
  return [...found.values()].sort((a, b) => b.share - a.share);
}

/** The columns that are shown unless the user chooses others. */
export const chosenFor = (fields) =>
  fields.filter(({ share }) => share >= COMMON).slice(0, MOST).map(({ field }) => field);

/** Compares two cells: numbers by size, everything else as text; what is absent comes last. */
export function compareCells(a, b) {
  if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1);
  if (a.kind === 'number' && b.kind === 'number') return Number(a.text) - Number(b.text);
  return a.text < b.text ? -1 : a.text > b.text ? 1 : 0;
}
