/** Events of a job, each asked for once: pages from the newest on, until one that is known. */

import { get } from './api.js';

const PAGE = 1000;

export class JobEvents {
  /** @type {Map<string, any>} by id, the oldest first */
  known = new Map();

  /** @param {string} job */
  constructor(job) {
    this.job = job;
  }

  /** Whether there were new ones. */
  async load() {
    const fresh = [];
    let after = '';
    for (;;) {
      const limit = this.known.size ? 100 : PAGE;
      const page = await get(`v1/fine_tuning/jobs/${this.job}/events?limit=${limit}${after && `&after=${after}`}`);
      const unknown = page.data.filter((/** @type {any} */ event) => !this.known.has(event.id));
      fresh.push(...unknown);
      if (!page.has_more || unknown.length < page.data.length) break;
      after = page.data.at(-1).id;
    }
    for (const event of fresh.reverse()) this.known.set(event.id, event);
    return fresh.length > 0;
  }

  /** The oldest first. */
  get all() {
    return [...this.known.values()];
  }
}
