/** Elements, made without markup: whatever comes from outside is text. */

const SVG = 'http://www.w3.org/2000/svg';

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/**
 * Properties are set, attributes are those with a dash or of `attributes`; a value that is null is left out.
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...(Node | string | null)} children
 * @returns {any}
 */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value == null) continue;
    if (name.includes('-') || name === 'role' || name === 'scope') made.setAttribute(name, value);
    else if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** @param {string} tag @param {Record<string, string | number>} attributes @param {...(Node | string)} children */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/** Tells people who cannot see the page what has happened. @param {string} text */
export function announce(text) {
  byId('live').textContent = text;
}

/** Shows a sentence, or hides its place. @param {HTMLElement} place @param {string} text */
export function note(place, text) {
  place.textContent = text;
  place.hidden = !text;
}

const UNSEEN = /(?![\n\t])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;
const JOINERS = '\u200c\u200d'; // which words and emoji are written with

/** With what turns or hides text written out, as <U+202E>. @param {string} text */
export const visible = (text) =>
  text.replace(UNSEEN, (sign) =>
    JOINERS.includes(sign) ? sign : `<U+${sign.codePointAt(0)?.toString(16).toUpperCase().padStart(4, '0')}>`,
  );

/** What an error says, for people. @param {unknown} error */
export const sentence = (error) => (error instanceof Error ? error.message : String(error));
