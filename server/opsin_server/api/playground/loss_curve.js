/** The losses of a job over its steps, drawn as SVG, with a sentence and a table that say the same. */

import { el, svg } from './dom.js';

const HEIGHT = 240;
const LEFT = 44;
const RIGHT = 12;
const TOP = 12;
const BOTTOM = 28;
const MOST = 600; // points of a line
const ROWS = 50; // of the table, and those of validation
const TICK = 60; // pixels for the number of a step

/** @typedef {{step: number, value: number}} Point */
/** @typedef {{train: Point[], valid: Point[], total: number}} Losses */

/**
 * What metric events say, in the order of steps.
 * @param {Iterable<any>} events
 * @returns {Losses}
 */
export function lossesOf(events) {
  /** @type {Losses} */
  const found = { train: [], valid: [], total: 0 };
  for (const { type, data } of events) {
    if (type !== 'metrics') continue;
    found.total = data.total_steps ?? found.total;
    if (Number.isFinite(data.train_loss)) found.train.push({ step: data.step, value: data.train_loss });
    if (Number.isFinite(data.full_valid_loss)) found.valid.push({ step: data.step, value: data.full_valid_loss });
  }
  for (const line of [found.train, found.valid]) line.sort((one, other) => one.step - other.step);
  return found;
}

/** @param {Losses} losses @param {number} width in pixels @param {boolean} ended whether no more come @returns {Node} */
export function lossCurve(losses, width, ended) {
  const all = [...losses.train, ...losses.valid];
  if (!all.length) return el('p', { className: 'soft' }, ended ? 'It ended before its first step.' : 'Its first step is still to come.');
  const last = Math.max(losses.total, ...all.map((point) => point.step), 2);
  const top = ceiling(Math.max(...all.map((point) => point.value)));
  const right = width - RIGHT;
  const x = (/** @type {number} */ step) => LEFT + ((step - 1) / (last - 1)) * (right - LEFT);
  const y = (/** @type {number} */ value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const place = (/** @type {Point} */ { step, value }) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`;
  const cursor = svg('line', { class: 'cursor', y1: TOP, y2: HEIGHT - BOTTOM, visibility: 'hidden' });
  const readout = el('span', { className: 'soft', 'aria-hidden': 'true' }, 'loss by step');
  const drawing = svg(
    'svg',
    { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: 'img', 'aria-label': described(losses) },
    ...[0, 1, 2, 3, 4].flatMap((part) => level((top * part) / 4, y, right)),
    ...stepTicks(last, right - LEFT).map((step) => svg('text', { x: x(step), y: HEIGHT - 8, 'text-anchor': 'middle' }, String(step))),
    cursor,
    svg('polyline', { class: 'train', points: thinned(losses.train).map(place).join(' ') }),
    svg('polyline', { class: 'valid', points: losses.valid.map(place).join(' ') }),
    ...losses.valid.map((point) => svg('circle', { class: 'valid', cx: x(point.step), cy: y(point.value), r: 3 })),
  );
  drawing.addEventListener('pointermove', (event) => {
    const at = /** @type {PointerEvent} */ (event).clientX - drawing.getBoundingClientRect().left;
    const step = Math.round(1 + ((at - LEFT) / (right - LEFT)) * (last - 1));
    readout.textContent = readingAt(losses, step);
    for (const end of ['x1', 'x2']) cursor.setAttribute(end, String(x(step)));
    cursor.setAttribute('visibility', step >= 1 && step <= last ? 'visible' : 'hidden');
  });
  return el('figure', { className: 'curve' }, legend(losses, readout), drawing, table(losses));
}

/** @param {Losses} losses @param {number} step */
function readingAt({ train, valid }, step) {
  const said = [train, valid].map((line) => line.find((point) => point.step === step)?.value.toFixed(4));
  return said.some(Boolean) ? `step ${step}: ${said.filter(Boolean).join(' and ')}` : 'loss by step';
}

/** @param {number} value @param {(value: number) => number} y @param {number} right */
function level(value, y, right) {
  const line = svg('line', { x1: LEFT, x2: right, y1: y(value), y2: y(value) });
  return [line, svg('text', { x: LEFT - 8, y: y(value) + 4, 'text-anchor': 'end' }, short(value))];
}

/** @param {Losses} losses @param {Node} readout */
function legend({ train, valid }, readout) {
  return el(
    'figcaption',
    {},
    el('span', { className: 'key train' }, 'training ', el('b', {}, last(train))),
    valid.length ? el('span', { className: 'key valid' }, 'validation ', el('b', {}, last(valid))) : null,
    readout,
  );
}

/** @param {Point[]} line */
const last = (line) => line.at(-1)?.value.toFixed(4) ?? '';

/** @param {Losses} losses */
export function described({ train, valid }) {
  const said = [['Training loss', train], ['validation loss', valid]]
    .filter(([, line]) => line.length)
    .map(([name, line]) => {
      const [from, to] = /** @type {Point[]} */ ([line[0], /** @type {Point[]} */ (line).at(-1)]);
      return `${name} ${from.value.toFixed(4)} at step ${from.step}, ${to.value.toFixed(4)} at step ${to.step}`;
    });
  return `${said.join('; ')}.`;
}

/** @param {Losses} losses */
function table({ train, valid }) {
  const columns = (valid.length ? [train, valid] : [train]).map((line) => new Map(line.map(({ step, value }) => [step, value])));
  const steps = new Set([...thinned(train, ROWS), ...valid].map(({ step }) => step));
  const rows = [...steps].sort((one, other) => one - other).map((step) =>
    el('tr', {}, el('th', { scope: 'row' }, String(step)), ...columns.map((values) => el('td', {}, values.get(step)?.toFixed(4) ?? ''))),
  );
  const head = ['step', 'training', 'validation'].slice(0, columns.length + 1).map((name) => el('th', { scope: 'col' }, name));
  return el(
    'details',
    {},
    el('summary', { id: 'losses-table' }, 'As a table'),
    el('table', { className: 'list numbers' }, el('thead', {}, el('tr', {}, ...head)), el('tbody', {}, ...rows)),
  );
}

/** Every so many points, and the last one. @param {Point[]} line */
function thinned(line, most = MOST) {
  const every = Math.ceil(line.length / most);
  return line.filter((_, at) => at % every === 0 || at === line.length - 1);
}

/** A round number that is not below. @param {number} value */
function ceiling(value) {
  const unit = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10].map((part) => part * unit).find((round) => round >= value) ?? 10 * unit;
}

/** @param {number} value */
const short = (value) => String(Number(value.toPrecision(2)));

/** @param {number} last @param {number} room in pixels */
function stepTicks(last, room) {
  const most = Math.max(2, room / TICK);
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((each) => last / each <= most) ?? ceiling(last / most);
  const found = [1];
  for (let step = every; step <= last; step += every) if (step > 1) found.push(step);
  return found;
}
