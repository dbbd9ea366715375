// JSON as its author wrote it. JSON.parse would change numbers above 2^53 and drop repeated members, and the page must
// not show another value than etcd has. So this file reads tokens, and keeps their text.

const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|[{}[\]:,]/g;
const INDENT = '  ';
const DEEPEST = 40; // levels that are indented: of a deeper value the spaces would be more than a text can hold
const LARGEST = 100_000; // characters of a value that is read for columns: a table of larger ones would stand still

const kindOf = (text) => text[0] === '"' ? 'string' : /[{}[\]:,]/.test(text[0]) ? 'mark'
  : text === 'true' || text === 'false' || text === 'null' ? 'word' : 'number';

/** The tokens of a JSON text as {kind, text}; null if the text is not JSON. */
export function tokensOf(text) {
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  return (text.match(TOKEN) ?? []).map((one) => ({ kind: kindOf(one), text: one }));
}

/** The text laid out, as lines of {depth, tokens}; a member's name has the kind "name". null if it is not JSON. */
export function linesOf(text) {
  const tokens = tokensOf(text);
  if (!tokens) return null;
  const lines = [{ depth: 0, tokens: [] }];
  let depth = 0;
  const newLine = () => lines.push({ depth, tokens: [] });
  for (let at = 0; at < tokens.length; at++) {
    const token = tokens[at], next = tokens[at + 1]?.text, put = (one) => lines.at(-1).tokens.push(one);
    if (token.text === '{' || token.text === '[') {
      put(token);
      if (next === '}' || next === ']') put(tokens[++at]);
      else { depth++; newLine(); }
    } else if (token.text === '}' || token.text === ']') {
      depth--;
      newLine();
      put(token);
    } else if (token.text === ',') {
      put(token);
      newLine();
    } else if (token.text === ':') {
      put({ kind: 'mark', text: ': ' });
    } else put(token.kind === 'string' && next === ':' ? { kind: 'name', text: token.text } : token);
  }
  return lines;
}

export const indent = (depth) => INDENT.repeat(Math.min(depth, DEEPEST));

/** One line of `linesOf` as text. */
export const lineText = ({ depth, tokens }) => indent(depth) + tokens.map(({ text }) => text).join('');

/** The lines of the values that were asked for last, read once for each entry: an entry never changes. */
export class Lines {
  #known = new Map(); // at most the two of a difference: the lines of a large value are many times larger

  of(entry) {
    const lines = this.#known.has(entry) ? this.#known.get(entry) : linesOf(entry.value ?? '');
    this.#known.delete(entry); // so that the Map is in the order in which they were asked for
    this.#known.set(entry, lines);
    const [oldest] = this.#known.keys();
    if (this.#known.size > 2) this.#known.delete(oldest);
    return lines;
  }

  /** The value laid out, line by line; its own lines if it is not JSON. */
  laidOut(entry) { return this.of(entry)?.map(lineText) ?? (entry.value ?? '').split('\n'); }
}

/**
 * The members of a JSON object, as a Map from their path ("load", "zone.name") to {kind, text}. Objects inside are
 * entered down to `depth` names; what lies deeper, and arrays, are one compact text. null if the text is no object.
 */
export function membersOf(text, depth = 2) {
  if (text.length > LARGEST || !/^\s*\{/.test(text)) return null; // most texts that are not objects end here
  const tokens = tokensOf(text);
  if (!tokens) return null;
  const members = new Map();
  let at = 0;
  const compact = () => { // the text of the object or array that begins here
    let open = 0, out = '';
    do {
      const { text: part } = tokens[at++];
      if (part === '{' || part === '[') open++;
      if (part === '}' || part === ']') open--;
      out += part;
    } while (open);
    return out;
  };
  const object = (path, left) => {
    at++; // {
    while (tokens[at].text !== '}') {
      const name = path + JSON.parse(tokens[at].text);
      at += 2; // the name and the colon
      if (tokens[at].text === '{' && left > 1 && tokens[at + 1].text !== '}') object(`${name}.`, left - 1);
      else if (tokens[at].text === '{' || tokens[at].text === '[') members.set(name, { kind: 'part', text: compact() });
      else {
        const { kind, text: raw } = tokens[at++];
        members.set(name, { kind, text: kind === 'string' ? JSON.parse(raw) : raw });
      }
      if (tokens[at].text === ',') at++;
    }
    at++; // }
  };
  object('', depth);
  return members;
}
