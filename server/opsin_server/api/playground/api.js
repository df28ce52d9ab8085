/** The server's own routes, asked with the key. A failure is an error with the sentence that the server sent. */

import { askForKey, key } from './key.js';

/** Where the server is, with what a proxy puts in front of it: this file lies in its /playground. */
const ROOT = import.meta.url.replace(/\/+playground\/+[^/]*$/, '/');

export class ApiError extends Error {
  /** @param {string} message @param {number} status 0: there was no answer @param {string | null} [param] what is wrong */
  constructor(message, status, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/**
 * @param {string} path below the root
 * @param {RequestInit & {json?: unknown}} [options]
 * @returns {Promise<Response>} one that succeeded
 */
export async function ask(path, { json, ...options } = {}) {
  const headers = new Headers(options.headers);
  const sent = key();
  if (sent) headers.set('authorization', `Bearer ${sent}`);
  if (json !== undefined) headers.set('content-type', 'application/json');
  const body = json === undefined ? options.body : JSON.stringify(json);
  let response;
  try {
    response = await fetch(ROOT + path, { ...options, body, headers, credentials: 'omit' });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError('The server does not answer', 0);
  }
  if (response.ok) return response;
  const { message, param } = await errorOf(response);
  if (response.status === 401 && sent === key()) askForKey(message); // (another may have been given meanwhile)
  throw new ApiError(message, response.status, param);
}

/** @param {string} path @param {RequestInit & {json?: unknown}} [options] @returns {Promise<any>} */
export async function get(path, options) {
  return (await ask(path, options)).json();
}

/** @param {string} path @param {unknown} json @param {RequestInit} [options] @returns {Promise<any>} */
export const post = (path, json, options = {}) => get(path, { ...options, method: 'POST', json });

/** @param {Response} response @returns {Promise<{message: string, param: string | null}>} */
async function errorOf(response) {
  try {
    const { message, param } = (await response.json()).error;
    if (typeof message === 'string' && message) return { message, param };
  } catch {
    // not the server's own words
  }
  return { message: `The server answered with ${response.status}`, param: null };
}
