/** One job as it goes on: its state, the curve of its losses, its checkpoints and what has happened. */

import { get, post } from './api.js';
import { announce, byId, el, note, sentence } from './dom.js';
import { JobEvents } from './job_events.js';
import { lossCurve, lossesOf } from './loss_curve.js';

const EVERY = 2000; // milliseconds
const SHOWN = 200; // events
const PADDING = 30; // pixels beside the curve
const ENDED = ['succeeded', 'failed', 'cancelled'];
/** What may be asked of a job, by its state. */
const ACTIONS = {
  validating_files: ['pause', 'cancel'],
  queued: ['pause', 'cancel'],
  running: ['pause', 'cancel'],
  paused: ['resume', 'cancel'],
};

/**
 * shown: its state. lost: the server did not answer the last time. sure: it is asked once more whether it is cancelled.
 * redraw: as it was drawn last.
 * @typedef {{id: string, events: JobEvents, timer: number | undefined, shown: string, lost: boolean, sure: boolean,
 *   redraw: () => void}} Shown
 */

/** @type {Shown | null} */
let current = null;
/** @type {(model: string) => void} */
let talkTo = () => {};
/** @type {() => void} */
let changed = () => {};

/** @param {(model: string) => void} talk @param {() => void} onChange */
export function startJob(talk, onChange) {
  talkTo = talk;
  changed = onChange;
  addEventListener('resize', () => current?.redraw());
}

/** @param {string} state */
export const stateOf = (state) => el('span', { className: `state ${state}` }, state.replaceAll('_', ' '));

export function closeJob() {
  clearTimeout(current?.timer);
  current = null;
  byId('job').replaceChildren();
}

/** @param {string} id */
export function openJob(id) {
  /** @type {Shown} */
  const mine = { id, events: new JobEvents(id), timer: undefined, shown: '', lost: false, sure: false, redraw: () => {} };
  current = mine;
  const look = async () => {
    let job;
    try {
      if (!document.hidden) job = await load(mine);
    } catch (error) {
      if (current === mine) lose(mine, sentence(error));
    }
    if (current === mine && !(job && ENDED.includes(job.status))) mine.timer = setTimeout(look, EVERY);
  };
  void look();
}

/** What was drawn stays, below what went wrong. @param {Shown} mine @param {string} why */
function lose(mine, why) {
  const place = byId('job');
  if (!byId('job-lost')) place.prepend(el('p', { className: 'note', role: 'alert', id: 'job-lost' }));
  byId('job-lost').textContent = why;
  mine.lost = true;
}

/** @param {Shown} mine */
async function load(mine) {
  const path = `v1/fine_tuning/jobs/${encodeURIComponent(mine.id)}`;
  const job = await get(path); // before its events: none is missed that came with the end
  const [fresh, checkpoints] = await Promise.all([mine.events.load(), get(`${path}/checkpoints?limit=100`)]);
  if (current !== mine || (!fresh && !mine.lost && mine.shown === job.status)) return job;
  mine.lost = false;
  if (mine.shown && mine.shown !== job.status) {
    announce(`The job is ${job.status.replaceAll('_', ' ')}`);
    changed();
  }
  mine.shown = job.status;
  mine.redraw = () => draw(job, mine.events.all, checkpoints.data);
  mine.redraw();
  return job;
}

/** @param {any} job @param {any[]} events @param {any[]} checkpoints */
function draw(job, events, checkpoints) {
  const place = byId('job');
  const open = [...place.querySelectorAll('details')].map((one) => one.open);
  const held = place.contains(document.activeElement) ? document.activeElement?.id : '';
  const scrolled = byId('job-events')?.scrollTop ?? 0;
  place.replaceChildren(
    el('header', {}, el('h2', {}, job.user_provided_suffix || job.id), stateOf(job.status), ...actions(job)),
    job.error?.message ? el('p', { className: 'note' }, job.error.message) : '',
    facts(job, events),
    lossCurve(lossesOf(events), place.clientWidth - PADDING, ENDED.includes(job.status)),
    ...models(job, checkpoints),
    el('h3', {}, 'Events'),
    eventList(events),
  );
  place.querySelectorAll('details').forEach((one, at) => (one.open = open[at] ?? false));
  byId('job-events').scrollTop = scrolled;
  if (held) (byId(held) ?? place).focus();
}

/** @param {any} job */
function actions(job) {
  const names = ACTIONS[/** @type {keyof ACTIONS} */ (job.status)] ?? [];
  return names.map((name) => {
    const asks = name === 'cancel' && !current?.sure;
    const act = async () => {
      if (asks && current) {
        current.sure = true;
        current.redraw();
        return;
      }
      try {
        await post(`v1/fine_tuning/jobs/${job.id}/${name}`, {});
      } catch (error) {
        note(byId('notice'), sentence(error));
      }
      changed();
      if (current?.id !== job.id) return;
      clearTimeout(current?.timer);
      openJob(job.id);
    };
    const label = name === 'cancel' && !asks ? 'Cancel for good' : name[0].toUpperCase() + name.slice(1);
    return el('button', { type: 'button', id: `job-${name}`, onclick: act }, label);
  });
}

/** @param {any} job @param {any[]} events */
function facts(job, events) {
  const metrics = events.filter((event) => event.type === 'metrics').at(-1)?.data;
  const numbers = job.method[job.method.type].hyperparameters;
  const pairs = [
    ['model', job.model],
    ['step', metrics ? `${metrics.step} of ${metrics.total_steps}` : '–'],
    ...Object.entries(numbers).map(([name, value]) => [name.replaceAll('_', ' ').replace('n epochs', 'epochs'), value]),
    ...(job.estimated_finish && !ENDED.includes(job.status) ? [['ends about', clock(job.estimated_finish)]] : []),
    ['trained tokens', job.trained_tokens?.toLocaleString('en') ?? '–'],
    ['seed', job.seed],
  ];
  return el('dl', { className: 'facts-list' }, ...pairs.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, String(value)))));
}

/** @param {any} job @param {any[]} checkpoints */
function models(job, checkpoints) {
  const found = checkpoints.map((one) => ({ name: one.fine_tuned_model_checkpoint, step: one.step_number, loss: one.metrics }));
  if (job.fine_tuned_model) found.unshift({ name: job.fine_tuned_model, step: 'the model', loss: {} });
  if (!found.length) return [];
  const rows = found.map(({ name, step, loss }, at) =>
    el('tr', {}, el('th', { scope: 'row' }, typeof step === 'number' ? `step ${step}` : step),
      el('td', {}, el('code', {}, name)),
      el('td', { className: 'number' }, (loss.full_valid_loss ?? loss.train_loss)?.toFixed(4) ?? ''),
      el('td', {}, el('button', { type: 'button', id: `try-${at}`, 'aria-label': `Try ${name}`, onclick: () => talkTo(name) }, 'Try it'))),
  );
  return [el('h3', {}, 'Models'), el('div', { className: 'scroll' }, el('table', { className: 'list' }, el('tbody', {}, ...rows)))];
}

/** @param {number} seconds of Unix */
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString('en-GB');

/** @param {any[]} events */
function eventList(events) {
  const rows = events.slice(-SHOWN).reverse().map((event) =>
    el('li', { className: event.level },
      el('time', { className: 'soft' }, clock(event.created_at)), ' ', event.message),
  );
  return el('ol', { className: 'events', id: 'job-events', tabIndex: 0, 'aria-label': 'Events, the newest first' }, ...rows);
}
