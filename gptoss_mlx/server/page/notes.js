/**
 * Notes: sentences about the page itself, each with at most one action, that stay until they are
 * closed; and what a screen reader is told.
 */

import { find, iconButton, make } from './dom.js';

const LONGEST = 700; // characters read out of an answer

/** @type {Map<string, HTMLElement>} */
const shown = new Map();

/**
 * @typedef {object} Manner
 * @property {string} [label] of the action
 * @property {() => void} [act]
 * @property {boolean} [closable]
 * @property {boolean} [silent] not read out, for what changes often
 */

/**
 * Shows a note in place of the one of the same kind.
 *
 * @param {string} kind
 * @param {string | Node} text
 * @param {Manner} [manner]
 */
export function note(kind, text, { label, act, closable = true, silent = false } = {}) {
  dismiss(kind);
  const onclick = () => {
    dismiss(kind);
    act?.();
  };
  const element = make(
    'div',
    silent ? { className: 'note' } : { className: 'note', role: 'status' },
    make('p', {}, text),
    label ? make('button', { type: 'button', onclick }, label) : null,
    closable ? iconButton('close', 'Close the note', () => dismiss(kind)) : null,
  );
  shown.set(kind, element);
  find('notes', HTMLElement).append(element);
}

/** @param {string} kind */
export function dismiss(kind) {
  shown.get(kind)?.remove();
  shown.delete(kind);
}

/**
 * Notes what becomes of something that may fail, if it does.
 *
 * @param {string} kind
 * @param {Promise<unknown>} doing
 */
export function tell(kind, doing) {
  dismiss(kind);
  doing.catch((error) => note(kind, error instanceof Error ? error.message : String(error)));
}

/**
 * Tells a screen reader, after what it reads now.
 *
 * @param {string} text
 */
export function announce(text) {
  const announcer = find('announcer', HTMLElement);
  const short = text.length > LONGEST ? `${text.slice(0, LONGEST)} … and more.` : text;
  // The same text twice would not be read again.
  announcer.textContent = announcer.textContent === short ? `${short}\u00a0` : short;
}
