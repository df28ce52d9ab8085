/** The view of a training file: upload one, or choose one that is here, and see what a job would read of it. */

import { post } from './api.js';
import { checkedRows } from './checked_rows.js';
import { announce, byId, el, sentence, visible } from './dom.js';
import { fillFiles, size, trainingFiles, upload } from './files.js';

/** @typedef {(checked: {file: string, method: string, opsin: Record<string, string>}) => void} Train */

/** @type {AbortController | null} */
let running = null;

/** @param {Train} train opens the form of a job that does what was checked */
export function startTrainingFile(train) {
  byId('jsonl').addEventListener('change', () => {
    const [file] = byId('jsonl').files;
    byId('jsonl').value = '';
    if (file) void take(file, train);
  });
  byId('file-form').addEventListener('submit', (/** @type {Event} */ event) => {
    event.preventDefault();
    if (byId('file').value) void check(byId('file').value, train);
  });
  byId('data').addEventListener('dragover', (/** @type {DragEvent} */ event) => event.preventDefault());
  byId('data').addEventListener('drop', (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    const file = event.dataTransfer?.files[0];
    if (file) void take(file, train);
  });
}

export async function showFiles() {
  fillFiles(byId('file'), await trainingFiles(), 'choose a file');
}

/** @param {File} file @param {Train} train */
async function take(file, train) {
  running?.abort();
  byId('file-report').replaceChildren();
  say(`Uploading ${visible(file.name)} (${size(file.size)})`);
  try {
    const stored = await upload(file);
    await showFiles();
    byId('file').value = stored.id;
    await check(stored.id, train);
  } catch (error) {
    fail(error);
  }
}

/** @param {string} file @param {Train} train */
async function check(file, train) {
  running?.abort();
  const mine = (running = new AbortController());
  say('Reading the file as a job would');
  byId('file-report').replaceChildren();
  try {
    const opsin = { train_on: byId('train-on').value, on_bad_row: byId('bad-row').value };
    const asked = { lines: Number(byId('lines').value), opsin };
    const found = await post(`v1/files/${encodeURIComponent(file)}/check`, asked, { signal: mine.signal });
    say('');
    const method = found.report.kind === 'preference' ? 'dpo' : 'supervised';
    const start = () => train({ file: found.file, method, opsin });
    byId('file-report').replaceChildren(verdict(found, start), ...reportOf(found.report), ...checkedRows(found.rows));
    announce(found.refusal ?? `${found.report.rows} rows are right`);
  } catch (error) {
    if (!mine.signal.aborted) fail(error);
  }
}

/** @param {any} found @param {() => void} train */
function verdict(found, train) {
  const read = `${found.complete ? 'All' : 'The first'} ${count(found.lines, 'line')} of the file`;
  const rest = found.timed_out ? ' There was no time to read more: pictures may come slowly.' : '';
  const button = el('button', { type: 'button', className: 'primary', onclick: train }, 'Train on it');
  return el(
    'div',
    { className: `verdict panel ${found.refusal ? 'refused' : 'accepted'}` },
    found.refusal
      ? el('p', {}, el('strong', {}, 'A job would fail: '), found.refusal, rest)
      : el('p', {}, el('strong', {}, `${read} would be trained on. `), found.complete ? '' : 'A job reads the rest as well.', rest),
    found.refusal ? null : button,
  );
}

/** @param {any} report @returns {Node[]} */
function reportOf(report) {
  const share = report.tokens ? `${((100 * report.labels) / report.tokens).toFixed(1)} % of ${count(report.tokens, 'token')}` : '';
  const facts = [
    [report.kind === 'preference' ? 'preferences' : 'conversations', report.rows, `${report.image_rows} with pictures`],
    ['learned tokens', report.labels, share],
    ['longest row', report.longest, 'tokens'],
    ['pictures', report.images, `${report.visual_tokens.toLocaleString('en')} visual tokens`],
    ['faults', report.fault_count, report.skipped ? `${count(report.skipped, 'row')} would be lost` : ''],
  ];
  const tiles = facts.map(([name, value, more]) =>
    el('div', {}, el('dt', {}, name), el('dd', {}, el('b', {}, Number(value).toLocaleString('en')), el('span', { className: 'soft' }, String(more)))),
  );
  return [el('dl', { className: 'tiles' }, ...tiles), ...remarks(report), ...faults(report)];
}

/** @param {any} report */
function remarks(report) {
  const said = report.remarks.map((/** @type {any} */ one) =>
    el('li', {}, `${count(one.rows, 'row')}, the first in line ${one.line}: ${one.message}`),
  );
  return said.length ? [el('div', { className: 'group' }, el('h2', {}, 'Remarks'), el('ul', { className: 'plain' }, ...said))] : [];
}

/** @param {any} report */
function faults(report) {
  if (!report.fault_count) return [];
  const rows = report.faults.map((/** @type {any} */ fault) =>
    el('tr', {}, el('th', { scope: 'row' }, fault.line ? `line ${fault.line}` : 'the file'), el('td', {}, fault.message)),
  );
  const more = report.fault_count - report.faults.length;
  const table = el('table', { className: 'list faults' }, el('tbody', {}, ...rows));
  const rest = more > 0 ? el('p', { className: 'soft' }, `and ${more.toLocaleString('en')} more`) : null;
  return [el('div', { className: 'group' }, el('h2', {}, 'Faults'), table, rest)];
}

/** @param {number} number @param {string} what */
const count = (number, what) => `${number.toLocaleString('en')} ${what}${number === 1 ? '' : 's'}`;

/** @param {string} text */
function say(text) {
  byId('file-status').className = 'status';
  byId('file-status').textContent = text;
}

/** @param {unknown} error */
function fail(error) {
  byId('file-status').className = 'status note';
  byId('file-status').textContent = sentence(error);
}
