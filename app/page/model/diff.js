// The difference between two texts, line by line: Myers' algorithm, which finds the fewest changed lines.

const MOST_STEPS = 1000; // changed lines. Beyond that a person reads no difference, and the time grows by the square

/** The lines of both texts in order, as {kind: "same" | "removed" | "added", text}. */
export function diffLines(before, after) {
  let head = 0, tail = 0;
  while (head < before.length && head < after.length && before[head] === after[head]) head++;
  while (tail < before.length - head && tail < after.length - head
    && before[before.length - 1 - tail] === after[after.length - 1 - tail]) tail++;
  const as = (kind) => (text) => ({ kind, text });
  return [
    ...before.slice(0, head).map(as('same')),
    ...changed(before.slice(head, before.length - tail), after.slice(head, after.length - tail)),
    ...before.slice(before.length - tail).map(as('same')),
  ];
}

function changed(a, b) {
  const trace = [];
  const reach = new Map([[1, 0]]); // diagonal x - y -> the furthest x that is reached on it
  for (let steps = 0; steps <= Math.min(a.length + b.length, MOST_STEPS); steps++) {
    trace.push(new Map(reach));
    for (let k = -steps; k <= steps; k += 2) {
      const down = k === -steps || (k !== steps && reach.get(k - 1) < reach.get(k + 1));
      let x = down ? reach.get(k + 1) : reach.get(k - 1) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      reach.set(k, x);
      if (x >= a.length && x - k >= b.length) return backtrack(a, b, trace);
    }
  }
  return [...a.map((text) => ({ kind: 'removed', text })), ...b.map((text) => ({ kind: 'added', text }))];
}

function backtrack(a, b, trace) {
  const lines = [];
  let [x, y] = [a.length, b.length];
  for (let steps = trace.length - 1; steps >= 0; steps--) {
    const reach = trace[steps], k = x - y;
    const down = k === -steps || (k !== steps && reach.get(k - 1) < reach.get(k + 1));
    const from = down ? k + 1 : k - 1;
    const [x0, y0] = [reach.get(from), reach.get(from) - from];
    while (x > x0 && y > y0 && x > 0 && y > 0) lines.push({ kind: 'same', text: a[--x], at: y-- });
    if (steps === 0) break;
    if (down) lines.push({ kind: 'added', text: b[--y] });
    else lines.push({ kind: 'removed', text: a[--x] });
  }
  return lines.reverse().map(({ kind, text }) => ({ kind, text }));
}

/** The changed lines and `context` lines around each; a part that is left out is {kind: "gap", count}. */
export function folded(lines, context = 3) {
  const near = new Uint8Array(lines.length);
  lines.forEach(({ kind }, at) => {
    if (kind !== 'same') near.fill(1, Math.max(0, at - context), at + context + 1);
  });
  const out = [];
  lines.forEach((line, at) => {
    if (near[at]) out.push(line);
    else if (out.at(-1)?.kind === 'gap') out.at(-1).count++;
    else out.push({ kind: 'gap', count: 1 });
  });
  return out;
}
