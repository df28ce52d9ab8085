/** Server-sent events of an answer, read from the body of a response. */

import { ApiError } from './api.js';

/**
 * The data of each event. Ends with [DONE]; a stream that ends without it has broken off.
 * @param {Response} response
 * @returns {AsyncGenerator<any>}
 */
export async function* events(response) {
  const reader = /** @type {ReadableStream} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(() => ({ value: '', done: true })); // (a connection that is lost)
      if (done) throw new ApiError('The answer broke off', 0);
      const whole = (rest + value).split('\n\n');
      rest = whole.pop() ?? '';
      for (const event of whole) {
        const data = dataOf(event);
        if (data === '[DONE]') return;
        if (!data) continue;
        const found = JSON.parse(data);
        if (found.error) throw new ApiError(found.error.message, 0);
        yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** @param {string} event */
function dataOf(event) {
  const lines = event.split('\n').filter((line) => line.startsWith('data:'));
  return lines.map((line) => line.slice(5).trimStart()).join('\n');
}
