/** The API key: asked for when the server wants one, and kept no longer than this tab. */

import { byId } from './dom.js';

const PLACE = 'opsin.key';
const SENT = /^[\x20-\x7e\xa0-\xff]*$/;
const WHY = byId('key-why').textContent;

let dismissed = false; // who wants to give none is not asked again and again

export const key = () => sessionStorage.getItem(PLACE) ?? '';

/** @param {string} why the server's sentence */
export function askForKey(why) {
  if (!dismissed) open(why);
}

/** What no header can carry is refused where it is typed. */
function check() {
  const sent = SENT.test(byId('key').value.trim());
  byId('key').setCustomValidity(sent ? '' : 'A key has Latin letters, digits and signs alone');
}

/** @param {string} why */
function open(why) {
  const dialog = byId('key-dialog');
  byId('key-why').textContent = why;
  if (dialog.open) return;
  byId('key').value = key();
  check();
  dialog.showModal();
}

/** @param {() => void} changed */
export function startKey(changed) {
  byId('key').addEventListener('input', check);
  byId('key-open').addEventListener('click', () => open(WHY));
  byId('key-dialog').addEventListener('cancel', () => (dismissed = true)); // (Escape)
  byId('key-cancel').addEventListener('click', () => {
    dismissed = true;
    byId('key-dialog').close();
  });
  byId('key-form').addEventListener('submit', (/** @type {Event} */ event) => {
    event.preventDefault();
    const given = byId('key').value.trim();
    if (given) sessionStorage.setItem(PLACE, given);
    else sessionStorage.removeItem(PLACE);
    byId('key-dialog').close();
    dismissed = false;
    changed();
  });
}
