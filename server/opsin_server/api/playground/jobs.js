/** Fine-tuning jobs and batches: the lists, asked for again while they are looked at. */

import { get } from './api.js';
import { byId, el, note, sentence } from './dom.js';
import { startJobForm } from './job_form.js';
import { closeJob, openJob, startJob, stateOf } from './job_view.js';

const EVERY = 5000; // milliseconds

/** @type {ReturnType<typeof setInterval> | undefined} */
let timer;
let failed = false; // whether the last list could not be had

/** @param {(model: string) => void} talk opens a chat with a model */
export function startJobs(talk) {
  startJob(talk, () => void list());
  startJobForm((id) => (location.hash = `jobs/${id}`));
}

/** @param {string} id of the job that is shown; "": none */
export async function enterJobs(id) {
  leaveJobs();
  timer = setInterval(() => {
    if (!document.hidden) void list();
  }, EVERY);
  if (id) openJob(id);
  else closeJob();
  await list();
}

export function leaveJobs() {
  clearInterval(timer);
  closeJob();
}

async function list() {
  try {
    const [jobs, batches] = await Promise.all([get('v1/fine_tuning/jobs?limit=50'), get('v1/batches?limit=20')]);
    const chosen = location.hash.split('/')[1];
    redraw(byId('job-list'), jobTable(jobs, chosen));
    redraw(byId('batch-list'), batchTable(batches.data));
    if (failed) note(byId('notice'), '');
    failed = false;
  } catch (error) {
    failed = true;
    note(byId('notice'), sentence(error));
  }
}

/** Keeps the focus where it was, by what a link leads to. @param {HTMLElement} place @param {Node} content */
function redraw(place, content) {
  const held = place.contains(document.activeElement) ? document.activeElement?.getAttribute('href') : null;
  place.replaceChildren(content);
  if (held) /** @type {HTMLElement | null} */ (place.querySelector(`a[href="${CSS.escape(held)}"]`))?.focus();
}

/** @param {any} page @param {string | undefined} chosen */
function jobTable(page, chosen) {
  if (!page.data.length) {
    return el('div', { className: 'empty' }, el('h2', {}, 'No jobs yet'), el('p', { className: 'soft' }, 'Upload a training file, look at what is learned of it, and train on it.'));
  }
  const rows = page.data.map((/** @type {any} */ job) => {
    const link = el('a', { href: `#jobs/${job.id}`, 'aria-current': job.id === chosen ? 'true' : null }, job.user_provided_suffix || job.id);
    const id = job.user_provided_suffix ? el('span', { className: 'soft id' }, job.id) : null;
    return el('tr', {}, el('td', {}, link, id), el('td', {}, stateOf(job.status)), el('td', { className: 'soft' }, when(job.created_at)));
  });
  const head = ['Job', 'State', 'Created'].map((name) => el('th', { scope: 'col' }, name));
  const more = page.has_more ? el('caption', {}, 'The newest 50') : null;
  return el('table', { className: 'list' }, more, el('thead', {}, el('tr', {}, ...head)), el('tbody', {}, ...rows));
}

/** @param {any[]} batches */
function batchTable(batches) {
  if (!batches.length) return el('span');
  const rows = batches.map(({ id, status, endpoint, request_counts: counts }) =>
    el('tr', {}, el('td', {}, el('code', {}, id)), el('td', {}, stateOf(status)), el('td', {}, endpoint),
      el('td', {}, `${counts.completed + counts.failed} of ${counts.total}${counts.failed ? `, ${counts.failed} failed` : ''}`)),
  );
  const head = ['Batch', 'State', 'Route', 'Requests'].map((name) => el('th', { scope: 'col' }, name));
  const table = el('table', { className: 'list' }, el('thead', {}, el('tr', {}, ...head)), el('tbody', {}, ...rows));
  return el('div', { className: 'scroll' }, el('h2', {}, 'Batches'), table);
}

/** @param {number} seconds of Unix */
function when(seconds) {
  const then = new Date(seconds * 1000);
  const today = then.toDateString() === new Date().toDateString();
  const clock = then.toLocaleTimeString('en-GB', { hour: '2-digit', minute: '2-digit' });
  return today ? clock : `${then.toLocaleDateString('en-CA')} ${clock}`;
}
