/** One model's answer as it comes: text, thoughts, calls of tools, JSON as a table, and what it took. */

import { el } from './dom.js';
import { jsonTable } from './json_table.js';

/** Why JSON is not whole, by the reason of its end. */
const BROKEN = { length: 'it was cut at the limit of tokens', stopped: 'it was stopped' };

export class AnswerCard {
  text = '';
  failed = false;

  /** @param {string} model @param {boolean} structured whether JSON was asked for */
  constructor(model, structured) {
    this.structured = structured;
    this.body = el('div', { className: structured ? 'said code' : 'said' });
    this.thoughts = el('div', { className: 'thoughts' });
    this.thinking = el('details', { hidden: true }, el('summary', {}, 'Thoughts'), this.thoughts);
    this.calls = el('div', { className: 'calls' });
    /** @type {{name: string, code: HTMLElement}[]} */
    this.called = [];
    this.facts = el('p', { className: 'facts soft' });
    this.copied = el('button', { type: 'button', hidden: true, onclick: () => this.copy() }, 'Copy');
    this.foot = el('div', { className: 'foot' }, this.facts, this.copied);
    this.element = el(
      'article',
      { className: 'answer waiting', 'aria-label': `Answer of ${model}` },
      el('h2', { className: 'model' }, model),
      this.thinking,
      this.body,
      this.calls,
      this.foot,
    );
  }

  /** @param {any} delta of a chunk's choice */
  add(delta) {
    this.element.classList.remove('waiting');
    const thought = delta.reasoning_content ?? delta.reasoning;
    if (thought) {
      this.thinking.hidden = false;
      this.thoughts.append(thought);
    }
    if (delta.content) {
      this.text += delta.content;
      this.body.append(delta.content);
    }
    for (const call of delta.tool_calls ?? []) this.addCall(call);
  }

  /** @param {any} call a part of one */
  addCall(call) {
    let known = this.called[call.index];
    if (!known) {
      known = this.called[call.index] = { name: '', code: el('code', {}) };
      this.calls.append(el('pre', { className: 'code' }, known.code));
    }
    if (call.function?.name) known.code.append(`${call.function.name} `);
    if (call.function?.arguments) known.code.append(call.function.arguments);
  }

  /** @param {string} reason why it ended @param {string[]} facts */
  end(reason, facts) {
    this.element.normalize(); // (each piece of text was a node of its own)
    this.element.classList.remove('waiting');
    if (this.structured && this.text) this.showJson(reason);
    else if (!this.text && !this.called.length) this.body.append(el('span', { className: 'soft' }, 'no text'));
    this.facts.replaceChildren(...facts.map((fact) => el('span', {}, fact)));
    this.copied.hidden = !this.text;
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.text);
      this.copied.textContent = 'Copied';
    } catch {
      this.copied.textContent = 'Not allowed';
    }
  }

  /** @param {string} sentence */
  fail(sentence) {
    this.failed = true;
    this.element.classList.remove('waiting');
    this.warn(sentence);
  }

  /** @param {string} sentence */
  warn(sentence) {
    this.foot.before(el('p', { className: 'note', role: 'alert' }, sentence));
  }

  /** @param {string} reason */
  showJson(reason) {
    let value;
    try {
      value = JSON.parse(this.text);
    } catch {
      this.warn(`The answer is no complete JSON: ${BROKEN[/** @type {keyof BROKEN} */ (reason)] ?? 'it is not valid'}.`);
      return;
    }
    const raw = el('pre', { className: 'code', tabIndex: 0, role: 'group', 'aria-label': 'Raw JSON' }, JSON.stringify(value, null, 2));
    this.body.className = 'structured';
    this.body.replaceChildren(el('div', { className: 'scroll' }, jsonTable(value)), raw);
  }
}
