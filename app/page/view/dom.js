// Elements in one expression. Texts become text nodes, never markup.

export const $ = (selector, root = document) => root.querySelector(selector);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  // One by one: a browser takes about 100,000 arguments, and a value shown whole has more parts.
  for (const child of children.flat()) if (child != null && child !== false) element.append(child);
  return element;
}

export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);

/** Set a text only if it is another one: a screen reader reads a live region again with each change. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Replace what is in an element. A keyboard that is there stays at its place, or at the last one. */
export function redraw(element, ...children) {
  const places = () => [...element.querySelectorAll('a, button, input, [tabindex]')];
  const at = places().indexOf(document.activeElement);
  element.replaceChildren(...children);
  if (at >= 0) (places()[at] ?? places().at(-1))?.focus({ preventScroll: true });
}

const still = matchMedia('(prefers-reduced-motion: reduce)');
/** Show for a moment that an element has changed; without motion if the reader wants none. */
export function pulse(element) {
  if (still.matches) return;
  const soft = getComputedStyle(element).getPropertyValue('--flash');
  element.animate([{ backgroundColor: soft }, { backgroundColor: 'transparent' }], { duration: 1400, easing: 'ease-out' });
}

/** Copy a text. Outside of a secure context (http:// of another host) browsers have no clipboard: then by selection. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h('textarea', { class: 'unseen', 'aria-hidden': 'true' });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand('copy');
  area.remove();
}

/** A button that copies what `text()` returns, and says so. */
export function copyButton(label, text) {
  const button = h('button', { class: 'quiet copy', onclick: async () => {
    await copy(text());
    button.textContent = 'Copied';
    say(`${label}: copied`);
    setTimeout(() => { button.textContent = label; }, 1500);
  } }, label);
  return button;
}

/** Tell a screen reader. */
export const say = (text) => { $('#said').textContent = text; };
