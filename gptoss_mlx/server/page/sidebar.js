/**
 * The list of conversations: by age, searched, renamed, exported and deleted.
 *
 * On a narrow screen it lies over the page and is out of reach while it is closed.
 */

import { find, icon, iconButton, make } from './dom.js';

/** @import { Head, Store } from './store.js' */

/**
 * @typedef {object} Choices
 * @property {() => void} begin a conversation
 * @property {(id: string, title: string) => void} rename
 * @property {(id: string) => void} remove
 * @property {(id: string) => void} save as a file
 */

const DAY = 24 * 60 * 60 * 1000;
const narrow = matchMedia('(max-width: 52rem)');

export class Sidebar {
  #element = find('sidebar', HTMLElement);
  #list = find('conversations', HTMLElement);
  #search = find('search', HTMLInputElement);
  #open = find('open-sidebar', HTMLButtonElement);
  #current = '';
  #drawing = 0;
  /** @type {Set<string>} conversations in which an answer runs */
  #running = new Set();

  /**
   * @param {Store} store
   * @param {Choices} choices
   */
  constructor(store, choices) {
    this.store = store;
    this.choices = choices;
    const close = find('close-sidebar', HTMLButtonElement);
    this.#open.append(icon('menu'));
    close.append(icon('close'));
    const begin = find('new', HTMLAnchorElement);
    begin.prepend(icon('plus'));
    begin.onclick = (event) => {
      event.preventDefault();
      choices.begin();
    };
    this.#open.onclick = () => this.#slide(true);
    close.onclick = () => this.#slide(false);
    this.#search.oninput = () => this.draw();
    this.#element.onkeydown = (event) => {
      if (event.key === 'Escape' && narrow.matches) this.#slide(false);
    };
    this.#element.onclick = (event) => {
      if (event.target instanceof Element && event.target.closest('a')) this.#slide(false);
    };
    narrow.onchange = () => this.#slide(false);
    this.#slide(false);
  }

  focusSearch() {
    this.#slide(true);
    this.#search.select();
  }

  /**
   * @param {string} current the conversation shown
   * @param {Iterable<string>} running
   */
  mark(current, running) {
    this.#current = current;
    this.#running = new Set(running);
    return this.draw();
  }

  async draw() {
    const turn = ++this.#drawing;
    const wanted = this.#search.value.trim();
    const heads = await this.store.search(wanted);
    if (turn !== this.#drawing || this.#list.querySelector('form')) return;
    const focused = this.#focused();
    const groups = Map.groupBy(heads, ({ updated }) => age(updated));
    const none = wanted ? 'Nothing found.' : 'Conversations will be listed here.';
    this.#list.replaceChildren(
      ...(heads.length ? [] : [make('p', { className: 'none' }, none)]),
      ...[...groups].flatMap(([name, members]) => [
        make('h2', {}, name),
        make('ul', {}, ...members.map((head) => this.#entry(head))),
      ]),
    );
    if (!focused) return;
    const controls = [...this.#list.querySelectorAll('a, button')];
    const same = controls.find((one) => nameOf(one) === focused);
    if (same instanceof HTMLElement) same.focus();
    else this.#search.focus();
  }

  /** @returns {string} the name of the control in the list that has the focus, or nothing */
  #focused() {
    const { activeElement } = document;
    return activeElement && this.#list.contains(activeElement) ? nameOf(activeElement) : '';
  }

  /** @param {Head} head */
  #entry({ id, title }) {
    const link = make('a', { href: `#${id}`, title }, title);
    if (id === this.#current) link.setAttribute('aria-current', 'page');
    if (this.#running.has(id)) link.append(make('span', { className: 'visually-hidden' }, ' (answering)'));
    const entry = make(
      'li',
      { className: this.#running.has(id) ? 'running' : '' },
      link,
      make(
        'span',
        { className: 'entry-actions' },
        iconButton('pencil', `Rename ${title}`, () => this.#rename(entry, id, title)),
        iconButton('export', `Export ${title}`, () => this.choices.save(id)),
        iconButton('trash', `Delete ${title}`, () => this.choices.remove(id)),
      ),
    );
    return entry;
  }

  /**
   * @param {HTMLElement} entry
   * @param {string} id
   * @param {string} title
   */
  #rename(entry, id, title) {
    const input = make('input', { value: title, 'aria-label': 'Name of the conversation' });
    let done = false;
    const end = (/** @type {boolean} */ keep) => {
      if (done) return;
      done = true;
      form.remove();
      const name = input.value.trim();
      if (keep && name && name !== title) this.choices.rename(id, name);
      else this.draw();
    };
    const form = make(
      'form',
      {
        onsubmit: (/** @type {Event} */ event) => {
          event.preventDefault();
          end(true);
        },
        onkeydown: (/** @type {KeyboardEvent} */ event) => {
          if (event.key !== 'Escape') return;
          event.stopPropagation();
          end(false);
        },
      },
      input,
    );
    input.onblur = () => end(true);
    entry.replaceChildren(form);
    input.select();
  }

  /** @param {boolean} open */
  #slide(open) {
    const over = narrow.matches;
    const wasOpen = document.body.classList.contains('sidebar-open');
    document.body.classList.toggle('sidebar-open', over && open);
    this.#element.inert = over && !open;
    find('page', HTMLElement).inert = over && open;
    this.#open.setAttribute('aria-expanded', String(over && open));
    if (over && open) this.#search.focus();
    else if (wasOpen) this.#open.focus();
  }
}

/** @param {Element} control */
function nameOf(control) {
  return control.getAttribute('aria-label') ?? control.getAttribute('href') ?? '';
}

/** @param {number} updated */
function age(updated) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (updated >= midnight) return 'Today';
  if (updated >= midnight - DAY) return 'Yesterday';
  return updated >= midnight - 7 * DAY ? 'This week' : 'Earlier';
}
