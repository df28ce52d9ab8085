/** A new job: a file, a model, and the hyperparameters that are given; the rest is the server's to choose. */

import { post } from './api.js';
import { byId, note, sentence } from './dom.js';
import { fillFiles, trainingFiles } from './files.js';
import { fillModels } from './models.js';

/** @param {(id: string) => void} made */
export function startJobForm(made) {
  byId('new-job').addEventListener('click', () => void showForm(byId('job-form').hidden));
  byId('job-form').addEventListener('submit', async (/** @type {Event} */ event) => {
    event.preventDefault();
    note(byId('job-form-note'), '');
    try {
      const job = await post('v1/fine_tuning/jobs', asked());
      await showForm(false);
      made(job.id);
    } catch (error) {
      note(byId('job-form-note'), sentence(error));
    }
  });
}

/**
 * @param {boolean} open
 * @param {{file: string, method: string, opsin: Record<string, string>}} [checked] what is begun with
 */
export async function showForm(open, checked) {
  byId('job-form').hidden = !open;
  byId('new-job').setAttribute('aria-expanded', String(open));
  if (!open) return;
  fillModels(byId('job-model'));
  try {
    const files = await trainingFiles();
    fillFiles(byId('job-file'), files, 'choose a file');
    fillFiles(byId('job-valid'), files, 'none');
    if (checked) begin(checked);
    note(byId('job-form-note'), '');
  } catch (error) {
    note(byId('job-form-note'), sentence(error));
  }
  byId('job-file').focus();
}

/** @param {{file: string, method: string, opsin: Record<string, string>}} checked */
function begin({ file, method, opsin }) {
  byId('job-file').value = file;
  byId('job-method').value = method;
  byId('job-train-on').value = opsin.train_on;
  byId('job-bad-row').value = opsin.on_bad_row;
}

function asked() {
  const method = byId('job-method').value;
  const hyperparameters = {
    ...number('n_epochs', 'job-epochs'),
    ...number('batch_size', 'job-batch'),
    ...number('learning_rate_multiplier', 'job-rate'),
  };
  const suffix = byId('job-suffix').value.trim();
  const opsin = { train_on: byId('job-train-on').value, on_bad_row: byId('job-bad-row').value, ...number('lora_rank', 'job-rank') };
  return {
    model: byId('job-model').value,
    training_file: byId('job-file').value,
    ...(byId('job-valid').value && { validation_file: byId('job-valid').value }),
    ...(suffix && { suffix }),
    ...number('seed', 'job-seed'),
    method: { type: method, [method]: { hyperparameters } },
    opsin,
  };
}

/** @param {string} name @param {string} id of its input @returns {Record<string, number>} */
function number(name, id) {
  return byId(id).value ? { [name]: Number(byId(id).value) } : {};
}
