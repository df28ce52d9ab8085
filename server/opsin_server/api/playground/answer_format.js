/** In which form an answer is asked for: `response_format`, from what the settings say. */

import { byId, el, note, sentence } from './dom.js';

const TYPES = ['string', 'integer', 'number', 'boolean'];
const PRESETS = {
  'Shapes in a picture': {
    type: 'object',
    properties: {
      shapes: {
        type: 'array',
        maxItems: 4,
        items: {
          type: 'object',
          properties: {
            shape: { enum: ['circle', 'square', 'triangle', 'star'] },
            colour: { enum: ['red', 'blue', 'green', 'orange'] },
          },
          required: ['shape', 'colour'],
        },
      },
    },
    required: ['shapes'],
  },
  'A receipt': {
    type: 'object',
    properties: {
      shop: { type: 'string' },
      date: { type: 'string', format: 'date' },
      items: {
        type: 'array',
        items: {
          type: 'object',
          properties: { name: { type: 'string' }, price: { type: 'number' } },
          required: ['name', 'price'],
        },
      },
      total: { type: 'number' },
    },
    required: ['shop', 'items', 'total'],
  },
  'Yes or no, with a reason': {
    type: 'object',
    properties: { reason: { type: 'string' }, answer: { enum: ['yes', 'no'] } },
    required: ['reason', 'answer'],
  },
};

export function startFormat() {
  const presets = Object.entries(PRESETS);
  byId('preset').append(...presets.map(([name]) => el('option', { value: name }, name)));
  const begin = () => (byId('schema').value = JSON.stringify(PRESETS[byId('preset').value], null, 2));
  byId('preset').addEventListener('change', begin);
  const show = () => {
    byId('fields-field').hidden = byId('format').value !== 'fields';
    byId('schema-field').hidden = byId('format').value !== 'schema';
    note(byId('format-note'), '');
  };
  byId('format').addEventListener('change', show);
  begin();
  show();
}

/**
 * null: free text. Shows what is wrong, and throws it.
 * @returns {object | null}
 */
export function responseFormat() {
  try {
    note(byId('format-note'), '');
    const kind = byId('format').value;
    if (kind === 'text') return null;
    if (kind === 'object') return { type: 'json_object' };
    const schema = kind === 'fields' ? schemaOfFields(byId('fields').value) : parsed(byId('schema').value);
    return { type: 'json_schema', json_schema: { name: 'answer', strict: true, schema } };
  } catch (error) {
    note(byId('format-note'), sentence(error));
    throw error;
  }
}

/** @param {string} text "shape, count: integer" */
function schemaOfFields(text) {
  /** @type {Record<string, object>} */
  const properties = {};
  for (const field of text.split(',').map((part) => part.trim()).filter(Boolean)) {
    const [name, type = 'string'] = field.split(':').map((part) => part.trim());
    if (!TYPES.includes(type)) throw new Error(`The type of ${name} must be one of ${TYPES.join(', ')}`);
    properties[name] = { type };
  }
  if (!Object.keys(properties).length) throw new Error('Name at least one field');
  return { type: 'object', properties, required: Object.keys(properties) };
}

/** @param {string} text */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`The schema is not JSON: ${sentence(error)}`);
  }
}
