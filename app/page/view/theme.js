// Light, dark, or as the system has it.

import { $ } from './dom.js';

const NAME = 'etcd-watch-gateway.theme';
const THEMES = ['auto', 'light', 'dark'];

export function followTheme() {
  let theme = 'auto';
  try { theme = localStorage.getItem(NAME) ?? theme; } catch { /* the browser keeps nothing here */ }
  const show = () => {
    document.documentElement.dataset.theme = theme;
    $('#theme').setAttribute('aria-label', `Theme: ${theme}`);
    $('#theme').title = `Theme: ${theme}`;
  };
  $('#theme').addEventListener('click', () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try { localStorage.setItem(NAME, theme); } catch { /* it holds until the page is closed */ }
    show();
  });
  show();
}
