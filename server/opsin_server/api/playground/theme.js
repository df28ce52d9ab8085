/** Light, dark, or as the system has it. */

import { byId } from './dom.js';

const PLACE = 'opsin.theme';
const NEXT = { auto: 'light', light: 'dark', dark: 'auto' };
const NAMES = { auto: 'Auto', light: 'Light', dark: 'Dark' };

export function startTheme() {
  let theme = localStorage.getItem(PLACE) ?? 'auto';
  if (!(theme in NEXT)) theme = 'auto';
  const show = () => {
    document.documentElement.dataset.theme = theme;
    byId('theme').textContent = `◐ ${NAMES[theme]}`;
    byId('theme').setAttribute('aria-label', `Theme: ${NAMES[theme]}`);
  };
  byId('theme').addEventListener('click', () => {
    theme = NEXT[theme];
    localStorage.setItem(PLACE, theme);
    show();
  });
  show();
}
