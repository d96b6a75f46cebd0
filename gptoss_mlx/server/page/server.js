/**
 * What the page knows of the server: whether it is ready, and its models.
 *
 * Until the server is ready it is asked again and again, and a note says how far it is.
 */

import { ApiError, ConnectionLost, health, models } from './api.js';
import { make } from './dom.js';
import { dismiss, note } from './notes.js';

/** @import { Health, Model } from './api.js' */
/** @import { Options } from './conversation.js' */

const LOADING_PAUSE = 500; // milliseconds
const LOST_PAUSE = 3000;

export class Server {
  /** @type {Model[]} */
  models = [];
  ready = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #watching = false;
  #said = ''; // the last note, which is not repeated

  /**
   * The server's tools that a conversation may use, of those that were chosen for it.
   *
   * @param {Options} options
   * @returns {string[]}
   */
  toolsFor({ model, served }) {
    const there = this.models.find(({ id }) => id === model)?.server_tools ?? {};
    return served.filter((name) => name in there);
  }

  onChange = () => {};
  onRefused = () => {};

  /** Asks until the server is ready. Called again while it asks, it asks at once. */
  async watch() {
    clearTimeout(this.#timer);
    if (this.#watching) return;
    this.#watching = true;
    const pause = await this.#ask();
    this.#watching = false;
    this.onChange();
    if (pause) this.#timer = setTimeout(() => this.watch(), pause);
  }

  /** @returns {Promise<number>} milliseconds until the next time, or 0 */
  async #ask() {
    try {
      const state = await health();
      if (state.status === 'loading') return this.#showLoading(state);
      if (state.status === 'error') throw new ApiError(state.message ?? 'The model has failed.');
      this.models = await models();
      dismiss('server');
      this.#said = '';
      this.ready = true;
      return 0;
    } catch (error) {
      this.ready = false;
      if (error instanceof ApiError && error.status === 401) {
        dismiss('server');
        this.#said = '';
        this.onRefused();
        return 0;
      }
      const lost = error instanceof ConnectionLost;
      const said = error instanceof Error ? error.message : String(error);
      const text = lost ? 'No server answers. The page tries again.' : said;
      if (text !== this.#said) {
        note('server', text, { label: 'Try now', act: () => this.watch(), closable: false });
      }
      this.#said = text;
      return LOST_PAUSE;
    }
  }

  /** @param {Health} state */
  #showLoading({ done, total }) {
    this.ready = false;
    const text = make('span', {}, 'The model is being loaded');
    if (done !== undefined && total) {
      const giga = (/** @type {number} */ bytes) => (bytes / 1e9).toFixed(1);
      const label = 'The model is being loaded';
      text.append(
        `: ${giga(done)} of ${giga(total)} GB`,
        make('progress', { value: done, max: total, 'aria-label': label }),
      );
    }
    this.#said = '';
    note('server', text, { closable: false, silent: true });
    return LOADING_PAUSE;
  }
}
