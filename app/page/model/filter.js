// The filter above the keys. Words, all of which must match: `api` (in the key or the value), `key:api`, `value:8080`,
// `zone:b` (a member of a JSON value), `-mail` (must not match), `"two words"`. Upper and lower case are the same.

const WORD = /(-?)(?:([^\s":]+):)?(?:"([^"]*)"?|(\S+))/g;

const has = (text, part) => text.toLowerCase().includes(part);

/** The parts of a filter as {not, field, text}. */
export const partsOf = (filter) =>
  [...filter.matchAll(WORD)].map(([, not, field = '', quoted, bare]) => ({
    not: not === '-', field, text: (quoted ?? bare).toLowerCase(),
  }));

/**
 * A predicate over (entry, members), or null if the filter is empty. `members(entry)` gives the members of the entry's
 * JSON value as `membersOf` does; the predicate calls it only if the filter names a member.
 */
export function compile(filter) {
  const parts = partsOf(filter);
  if (!parts.length) return null;
  const matches = (entry, members, { field, text }) => {
    if (field === 'key') return has(entry.key, text);
    if (field === 'value') return has(entry.value ?? '', text);
    if (field) return has(members(entry)?.get(field)?.text ?? '', text) || has(entry.key, `${field}:${text}`);
    return has(entry.key, text) || has(entry.value ?? '', text);
  };
  return (entry, members) => parts.every((part) => matches(entry, members, part) !== part.not);
}

/** Whether a filter looks at nothing but keys: then a put of a known key cannot change what is shown. */
export const onlyKeys = (filter) => partsOf(filter).every(({ field }) => field === 'key');
