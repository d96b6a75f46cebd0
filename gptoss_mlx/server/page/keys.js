/** Keys that work anywhere on the page. */

/**
 * @typedef {object} Commands
 * @property {() => boolean} stop an answer: whether there was one
 * @property {() => void} search
 * @property {() => void} begin a conversation
 */

/** @param {Commands} commands */
export function listenForKeys({ stop, search, begin }) {
  addEventListener('keydown', (event) => {
    const command = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    if (key === 'escape') {
      // An open dialog, and what is written in a field of its own, take the key first.
      if (event.defaultPrevented || document.querySelector('dialog[open]') || !stop()) return;
    } else if (command && key === 'k') search();
    else if (command && event.shiftKey && key === 'o') begin();
    else return;
    event.preventDefault();
  });
}
