/** One question to one model: streamed into its card, and measured on the way. */

import { ApiError, ask } from './api.js';
import { pictureAt } from './conversation.js';
import { sentence, visible } from './dom.js';
import { events } from './stream.js';

const ENDS = { length: 'cut at the limit of tokens', tool_calls: 'asks for tools' };
const LEAST = 0.01; // seconds, of which a rate can be told: what comes at once would give any number

/**
 * Returns the text, of a failed answer "".
 * @param {{messages: any[]}} request the body without `stream`
 * @param {import('./answer_card.js').AnswerCard} card
 * @param {AbortSignal} signal
 */
export async function askModel(request, card, signal) {
  const began = performance.now();
  /** @type {number | null} */
  let first = null;
  let last = began;
  let usage = null;
  let reason = '';
  try {
    const json = { ...request, stream: true, stream_options: { include_usage: true } };
    const response = await ask('v1/chat/completions', { method: 'POST', json, signal });
    for await (const chunk of events(response)) {
      usage = chunk.usage ?? usage;
      const choice = chunk.choices[0];
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      if (choice.delta.content || choice.delta.reasoning_content || choice.delta.tool_calls) {
        last = performance.now();
        first ??= last;
      }
      card.add(choice.delta);
    }
    card.end(reason, facts(usage, reason, began, first, last));
    return card.text;
  } catch (error) {
    if (signal.aborted) card.end('stopped', ['stopped']);
    else card.fail(refusal(error, request));
    return signal.aborted ? card.text : '';
  }
}

/** With the name of the picture that it is about. @param {unknown} error @param {{messages: any[]}} request */
function refusal(error, { messages }) {
  const name = error instanceof ApiError && pictureAt(messages, error.param);
  return name ? `${visible(name)}: ${sentence(error)}` : sentence(error);
}

/**
 * @param {any} usage
 * @param {string} reason
 * @param {number} began
 * @param {number | null} first
 * @param {number} last
 */
function facts(usage, reason, began, first, last) {
  const found = [];
  if (first !== null) found.push(`${milliseconds(first - began)} to the first token`);
  if (usage) {
    const seconds = first === null ? 0 : (last - first) / 1000;
    if (seconds > LEAST) {
      found.push(`${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s`);
    }
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    found.push(`prompt ${usage.prompt_tokens}${cached ? ` (${cached} cached)` : ''}`);
    found.push(`answer ${usage.completion_tokens}`);
  }
  if (reason !== 'stop') found.push(ENDS[/** @type {keyof ENDS} */ (reason)] ?? reason);
  return found;
}

/** @param {number} time */
const milliseconds = (time) => (time < 1000 ? `${Math.round(time)} ms` : `${(time / 1000).toFixed(1)} s`);
