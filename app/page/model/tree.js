// The folders of the keys: a tree by "/", with the number of keys in each. A folder is only a name: etcd has no folders.

const folderIn = /^\/?[^/]*\//; // the first folder in what is left of a key; a leading slash is part of its name

/** The folders at the top of a list of keys, in its order: a Map of their paths and numbers of keys. */
export function topFolders(kvs) {
  const folders = new Map();
  for (const { key, key_encoding } of kvs) {
    const found = !key_encoding && folderIn.exec(key);
    if (found) folders.set(found[0], (folders.get(found[0]) ?? 0) + 1);
  }
  return folders;
}

class Folder {
  count = 0; // keys in this folder and below
  folders = new Map(); // by name
  #sorted = null;

  constructor(name, path, exact = false) { [this.name, this.path, this.exact] = [name, path, exact]; }

  make(name) {
    const folder = new Folder(name, this.path + name);
    this.folders.set(name, folder);
    this.#sorted = null;
    return folder;
  }

  drop(name) {
    this.folders.delete(name);
    this.#sorted = null;
  }

  get sorted() { return (this.#sorted ??= [...this.folders.values()].sort((a, b) => (a.name < b.name ? -1 : 1))); }
}

export class Tree {
  /** `roots`: the ranges that are followed, as {kind: "prefix" | "key", name}; each is a folder at the top. */
  constructor(roots) {
    this.roots = roots.map(({ kind, name }) => new Folder(name, name, kind === 'key'));
  }

  /** The folders that hold a key, from the top. */
  #way(key, make) {
    const root = this.roots.find(({ path, exact }) => (exact ? key === path : key.startsWith(path)));
    if (!root) return [];
    const way = [root];
    for (let rest = key.slice(root.path.length), found; (found = folderIn.exec(rest)); rest = rest.slice(found[0].length)) {
      const above = way.at(-1);
      const folder = above.folders.get(found[0]) ?? (make ? above.make(found[0]) : null);
      if (!folder) break;
      way.push(folder);
    }
    return way;
  }

  add(key) {
    for (const folder of this.#way(key, true)) folder.count++;
  }

  remove(key) {
    const way = this.#way(key, false);
    way.forEach((folder, at) => {
      if (--folder.count === 0 && at) way[at - 1].drop(folder.name);
    });
  }

  /** The paths of the folders that hold a key, from the top: what pulses when the key changes. */
  paths(key) {
    return this.#way(key, false).map(({ path }) => path);
  }

  /**
   * The folders that are seen while the folders in `open` (a Set of paths) are open, in order. A chain of folders with
   * one folder each, and no key beside, is one row: {label, path, level, count, open: true | false | null}.
   */
  rows(open) {
    const rows = [];
    const visit = (folder, level, label) => {
      while (folder.folders.size === 1 && level) {
        const [only] = folder.folders.values();
        if (only.count !== folder.count) break;
        [folder, label] = [only, label + only.name];
      }
      const inner = folder.sorted;
      const isOpen = inner.length ? open.has(folder.path) : null;
      rows.push({ label, path: folder.path, level, count: folder.count, open: isOpen });
      if (isOpen) for (const one of inner) visit(one, level + 1, one.name);
    };
    for (const root of this.roots) visit(root, 0, root.name);
    return rows;
  }
}
