/** A JSON value as tables within tables. */

import { el } from './dom.js';

const DEEPEST = 12;

/** @param {any} value @param {number} [depth] @returns {Node} */
export function jsonTable(value, depth = 0) {
  if (value === null || typeof value !== 'object') return scalar(value);
  if (depth >= DEEPEST) return el('code', {}, JSON.stringify(value));
  if (!Array.isArray(value)) return objectTable(value, depth);
  if (!value.length) return el('span', { className: 'soft' }, 'none');
  return value.every(isObject) ? rowsTable(value, depth) : list(value, depth);
}

/** @param {any} value */
const isObject = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);

/** @param {any} value */
function scalar(value) {
  if (typeof value === 'string') return el('span', { className: value ? 'text' : 'soft' }, value || 'empty');
  return el('code', {}, String(value));
}

/** @param {Record<string, any>} value @param {number} depth */
function objectTable(value, depth) {
  const keys = Object.keys(value);
  if (!keys.length) return el('span', { className: 'soft' }, 'empty');
  const rows = keys.map((key) =>
    el('tr', {}, el('th', { scope: 'row' }, key), el('td', {}, jsonTable(value[key], depth + 1))),
  );
  return el('table', { className: 'json' }, el('tbody', {}, ...rows));
}

/** @param {Record<string, any>[]} rows @param {number} depth */
function rowsTable(rows, depth) {
  const keys = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const head = el('tr', {}, ...keys.map((key) => el('th', { scope: 'col' }, key)));
  const body = rows.map((row) =>
    el('tr', {}, ...keys.map((key) => el('td', {}, Object.hasOwn(row, key) ? jsonTable(row[key], depth + 1) : ''))),
  );
  return el('table', { className: 'json' }, el('thead', {}, head), el('tbody', {}, ...body));
}

/** @param {any[]} values @param {number} depth */
function list(values, depth) {
  return el('ol', { className: 'json' }, ...values.map((value) => el('li', {}, jsonTable(value, depth + 1))));
}
