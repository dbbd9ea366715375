// On a narrow screen the parts of the page are shown one at a time. A wide screen shows all of them.

import { $, h } from './dom.js';

const PANES = { folders: 'Folders', keys: 'Keys', value: 'Value', events: 'Events', sharing: 'Sharing' };
const narrow = matchMedia('(max-width: 52rem)');

export function followPanes() {
  const buttons = Object.entries(PANES).map(([name, text]) => h('button', { onclick: () => show(name) }, text));
  $('#panes').append(...buttons);
  function show(name) {
    document.body.dataset.pane = name;
    Object.keys(PANES).forEach((one, at) => buttons[at].setAttribute('aria-current', one === name ? 'true' : 'false'));
  }
  const enable = (on) => { $('#panes').hidden = !(on && narrow.matches); };
  narrow.addEventListener('change', () => enable(document.body.classList.contains('browsing')));
  show('keys');
  return { show: (name) => narrow.matches && show(name), enable };
}
