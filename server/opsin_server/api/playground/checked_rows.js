/** Rows of a training file as the model reads them, with what is learned of them marked. */

import { el, visible } from './dom.js';

const PARTS = { conversation: '', preferred: ', the preferred answer', non_preferred: ', the other answer' };

/** @param {any[]} rows @returns {Node[]} */
export function checkedRows(rows) {
  if (!rows.length) return [];
  const [marked, framed] = [el('mark', {}, 'Marked'), el('code', { className: 'special' }, 'special tokens')];
  const said = [marked, ' text is learned; the rest is what it is learned from. Framed are ', framed, ', which no typed text becomes.'];
  const legend = el('p', { className: 'soft' }, ...said);
  return [el('div', { className: 'group' }, el('h2', {}, 'Rows'), legend, el('ol', { className: 'rows' }, ...rows.map(row)))];
}

/** @param {any} row */
function row({ line, part, tokens, learned, runs }) {
  return el(
    'li',
    {},
    el('h3', {}, `Line ${line}${PARTS[/** @type {keyof PARTS} */ (part)]} `,
      el('span', { className: 'soft' }, `${learned} of ${tokens} tokens are learned`)),
    el('p', { className: 'run' }, ...runs.map(run)),
  );
}

/** @param {any} run */
function run({ text, learned, special, picture }) {
  if (picture) {
    const said = `picture, ${picture.tokens} tokens`;
    const image = picture.url ? el('img', { src: picture.url, alt: '' }) : null;
    return el('span', { className: 'picture' }, image, el('span', { className: 'soft' }, said));
  }
  const said = special ? el('code', { className: 'special' }, visible(text)) : visible(text);
  return el(learned ? 'mark' : 'span', {}, said);
}
