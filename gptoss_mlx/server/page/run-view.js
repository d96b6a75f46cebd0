/**
 * The view of a run: code or search folded, what came of it, and the question whether it may run.
 */

import { codeBlock, finishCode, growCode } from './code.js';
import { make } from './dom.js';
import { announce } from './notes.js';

/** @import { FileMade, Run, Source } from './responses.js' */

const NAMES = { python: 'Python', browser: 'Browser' };
const LANGUAGES = { python: 'python', mcp: 'json' };
const STATES = {
  in_progress: 'writes',
  running: 'runs',
  interpreting: 'runs',
  searching: 'runs',
  calling: 'runs',
  completed: '',
  failed: 'failed',
  incomplete: 'interrupted',
};

export class RunView {
  #summary = make('summary');
  #body = make('div', { className: 'run-body' });
  #figures = make('div', { className: 'figures' });
  #question = make('p', { className: 'question row', hidden: true });
  #details = make('details', {}, this.#summary, this.#body);
  #drawn = '';
  /** @type {HTMLElement | null} */
  #code = null;
  element = make('section', { className: 'run' }, this.#details, this.#question, this.#figures);

  /** @param {(id: string, mayRun: boolean) => void} answer */
  constructor(answer) {
    this.answer = answer;
  }

  /**
   * @param {Run} run
   * @param {boolean} ended whether the answer has
   */
  update(run, ended) {
    const state = ended && run.waits ? 'interrupted' : STATES[/** @type {'failed'} */ (run.status)];
    const line = run.kind === 'browser' ? run.text : toolOf(run);
    this.#summary.textContent = state ? `${line} · ${run.waits && !ended ? 'waits' : state}` : line;
    this.#ask(run, !ended);
    const drawn = `${run.text.length} ${run.status} ${run.waits}`;
    if (drawn !== this.#drawn) this.#draw(run);
    this.#drawn = drawn;
    this.#showFigures(run);
  }

  /** @param {Run} run */
  #draw({ kind, text, result, status, waits, found = [] }) {
    if (kind === 'browser') {
      this.#body.replaceChildren(found.length ? sourceList(found) : make('p', {}, text));
      return;
    }
    const language = LANGUAGES[kind];
    if (!this.#code || !growCode(this.#code, text, language)) {
      this.#code = codeBlock(text, language);
      this.#body.replaceChildren(this.#code);
    }
    if (waits || status !== 'in_progress') finishCode(this.#code);
    const properties = { className: 'result', tabIndex: 0, role: 'group', 'aria-label': 'Result' };
    if (result) this.#body.replaceChildren(this.#code, make('pre', properties, result));
  }

  /**
   * @param {Run} run
   * @param {boolean} can whether an answer is waited for
   */
  #ask(run, can) {
    const { id, waits } = run;
    const asks = Boolean(waits) && can;
    if (asks === !this.#question.hidden) return;
    this.#question.hidden = !asks;
    if (!asks) return;
    this.#details.open = true;
    const say = (/** @type {boolean} */ mayRun) => {
      Object.assign(run, { waits: false, status: mayRun ? 'running' : run.status });
      this.answer(id, mayRun);
      this.update(run, false);
    };
    this.#question.replaceChildren(
      make('span', {}, `May ${toolOf(run)} do this?`),
      make('button', { type: 'button', className: 'primary', onclick: () => say(true) }, 'Run'),
      make('button', { type: 'button', onclick: () => say(false) }, 'Decline'),
    );
    announce(`The model asks to use ${toolOf(run)}: run or decline.`);
  }

  /** @param {Run} run */
  #showFigures({ figures = [] }) {
    const known = figures.flatMap(({ data }) => data ?? []);
    if (known.length === this.#figures.childElementCount) return;
    const picture = (/** @type {string} */ src, /** @type {number} */ at) =>
      make('img', { src, alt: `Figure ${at + 1} of the code` });
    this.#figures.replaceChildren(...known.map(picture));
  }
}

/**
 * The tool of a run by its name.
 *
 * @param {Run} run
 */
function toolOf({ kind, server, name }) {
  if (kind !== 'mcp') return NAMES[kind];
  return server === name ? String(name) : `${server}: ${name}`;
}

/**
 * @param {Source[]} sources
 * @returns {HTMLElement}
 */
export function sourceList(sources) {
  const rel = 'noopener noreferrer';
  const entry = (/** @type {Source} */ { title, url }) =>
    make('li', {}, url ? make('a', { href: url, target: '_blank', rel }, title) : title);
  return make('ul', { className: 'sources' }, ...sources.map(entry));
}

/**
 * @param {FileMade[]} files
 * @param {(file: FileMade) => void} save
 * @returns {HTMLElement}
 */
export function fileList(files, save) {
  const entry = (/** @type {FileMade} */ file) => {
    const properties = { type: 'button', onclick: () => save(file) };
    return make('li', {}, make('button', properties, `Save ${file.name}`));
  };
  return make('ul', { className: 'files' }, ...files.map(entry));
}
