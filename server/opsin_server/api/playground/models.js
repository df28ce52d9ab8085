/** Everything that answers: the model, fine-tuned ones and their checkpoints, adapters with their versions, aliases. */

import { get } from './api.js';
import { el } from './dom.js';

const CHECKPOINT = ':ckpt-step-';
const GROUPS = ['Model', 'Fine-tuned', 'Checkpoints', 'Adapters', 'Versions', 'Aliases'];

/** @type {{group: string, id: string}[]} */
let known = [];
/** @type {Record<string, number>} pictures and videos that a request may have; of what stands not there, none */
let limits = { image: Infinity, video: Infinity };

/** Asks the server again. Adapters that it cannot serve as it runs are left out. */
export async function loadModels() {
  const [models, adapters] = await Promise.all([get('v1/models'), get('v1/adapters')]);
  const named = new Set(adapters.data.map((/** @type {any} */ one) => one.id));
  const lost = new Set(adapters.data.flatMap((/** @type {any} */ one) => (one.unservable ? [one.id, ...one.aliases] : [])));
  limits = models.data[0]?.limit_mm_per_prompt ?? limits; // (adapters take what the model takes)
  const served = models.data.filter((/** @type {any} */ one) => !lost.has(one.id));
  known = served.map((/** @type {any} */ one) => ({ id: one.id, group: groupOf(one, named) }));
  for (const one of adapters.data) {
    if (one.versions.length < 2 || one.unservable) continue;
    for (const { version } of one.versions) known.push({ id: `${one.id}@v${version}`, group: 'Versions' });
  }
  return known;
}

/** @param {any} model @param {Set<string>} named */
function groupOf(model, named) {
  if (!named.has(model.id)) return model.parent === null ? 'Model' : 'Aliases';
  if (model.id.includes(CHECKPOINT)) return 'Checkpoints';
  return model.id.startsWith('ft:') ? 'Fine-tuned' : 'Adapters';
}

/** @param {string} kind image or video */
export const mostOf = (kind) => limits[kind] ?? 0;

export const baseModel = () => known.find((one) => one.group === 'Model')?.id ?? '';

/**
 * Fills a select, and leaves chosen what was.
 * @param {HTMLSelectElement} select
 * @param {string} [chosen]
 */
export function fillModels(select, chosen = select.value) {
  const groups = GROUPS.map((group) => {
    const options = known.filter((one) => one.group === group).map((one) => el('option', { value: one.id }, one.id));
    return options.length ? el('optgroup', { label: group }, ...options) : null;
  });
  select.replaceChildren(...groups.filter((group) => group !== null));
  if (known.some((one) => one.id === chosen)) select.value = chosen;
}
