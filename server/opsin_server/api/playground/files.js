/** Uploaded training files, for the selects that offer them. */

import { ask, get } from './api.js';
import { el, visible } from './dom.js';

/** @typedef {{id: string, filename: string, bytes: number, created_at: number}} StoredFile */

/** The newest ones. @returns {Promise<StoredFile[]>} */
export const trainingFiles = async () => (await get('v1/files?purpose=fine-tune&limit=100')).data;

/** @param {File} file @returns {Promise<StoredFile>} */
export async function upload(file) {
  const form = new FormData();
  form.append('purpose', 'fine-tune');
  form.append('file', file);
  return (await ask('v1/files', { method: 'POST', body: form })).json();
}

/**
 * @param {HTMLSelectElement} select
 * @param {StoredFile[]} files
 * @param {string} none what stands for no file
 */
export function fillFiles(select, files, none) {
  const chosen = select.value;
  const options = files.map((file) => el('option', { value: file.id }, `${visible(file.filename)} (${size(file.bytes)})`));
  select.replaceChildren(el('option', { value: '' }, none), ...options);
  if (files.some((file) => file.id === chosen)) select.value = chosen;
}

/** @param {number} bytes */
export function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
