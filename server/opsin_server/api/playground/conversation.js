/** What was said, and what of it goes to a model. */

import { mostOf } from './models.js';
import { isVideo } from './pictures.js';

/** @type {WeakMap<object, string>} of parts of messages */
const names = new WeakMap();

/**
 * The name of the picture that a refusal means.
 * @param {any[]} messages
 * @param {string | null} param as "messages[1].content[0].image_url"
 */
export function pictureAt(messages, param) {
  const [, message, part] = /^messages\[(\d+)\]\.content\[(\d+)\]/.exec(param ?? '') ?? [];
  return names.get(messages[Number(message)]?.content[Number(part)] ?? names);
}

/**
 * answers: of each column, "" where a model has given none.
 * @typedef {{text: string, pictures: import('./pictures.js').Picture[], answers: string[]}} Turn
 */

/**
 * A column's own answers; of turns that it was not asked, the first column's. Turns that it failed in are left out.
 * @param {Turn[]} turns the last one is asked now
 * @param {number} column
 * @param {string} system
 */
export function messagesOf(turns, column, system) {
  const found = system ? [{ role: 'system', content: system }] : [];
  turns.forEach((turn, at) => {
    const answer = turn.answers[column] ?? turn.answers[0];
    if (!answer && at < turns.length - 1) return;
    found.push(questionOf(turn));
    if (at < turns.length - 1) found.push({ role: 'assistant', content: answer });
  });
  return found;
}

/** @param {any[]} messages @param {string} kind */
const countOf = (messages, kind) =>
  messages.flatMap(({ content }) => content).filter((part) => part.type === `${kind}_url`).length;

/** A sentence where there are more pictures or videos than a request may have. @param {any[]} messages */
export function tooMany(messages) {
  for (const [kind, noun] of Object.entries({ image: 'pictures', video: 'videos' })) {
    const count = countOf(messages, kind);
    if (count <= mostOf(kind)) continue;
    const earlier = count > countOf(messages.slice(-1), kind) ? ', with those of earlier questions' : '';
    return `${count} ${noun}${earlier}: a request may have ${mostOf(kind)}`;
  }
  return '';
}

/** @param {Turn} turn @returns {any} */
function questionOf({ text, pictures }) {
  if (!pictures.length) return { role: 'user', content: text };
  const images = pictures.map((picture) => {
    const type = isVideo(picture) ? 'video_url' : 'image_url';
    const part = { type, [type]: { url: picture.url } };
    names.set(part, picture.name);
    return part;
  });
  return { role: 'user', content: text ? [...images, { type: 'text', text }] : images };
}
