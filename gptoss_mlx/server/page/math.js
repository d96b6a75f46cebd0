/**
 * TeX in Markdown, shown as MathML: \( … \), \[ … \], $$ … $$, and $ … $ by Pandoc's rule, which
 * leaves prices alone. What cannot be read as TeX is shown as it was written.
 */

import { make } from './dom.js';

/**
 * @typedef {object} Temml
 * @property {(tex: string, element: Element, options: object) => void} render
 */

/** @type {Temml | null} */
let temml = null;
/** @type {Promise<void> | null} */
let loading = null;

/** Opens -> closes, for mathematics on lines of its own. */
const BLOCKS = new Map([
  ['\\[', '\\]'],
  ['$$', '$$'],
]);
const LONGEST = 5000; // characters of TeX

/**
 * Adds the rules to a markdown-it parser.
 *
 * @param {any} parser
 */
export function addMath(parser) {
  parser.inline.ruler.before('escape', 'math', takeInline);
  parser.block.ruler.after('fence', 'math', takeBlock, { alt: ['paragraph', 'blockquote', 'list'] });
}

/**
 * A block rule: from a line that begins with a mark to the line that ends with its other.
 *
 * @param {any} state markdown-it's
 * @param {number} start
 * @param {number} end
 * @param {boolean} silent
 */
function takeBlock(state, start, end, silent) {
  const from = state.bMarks[start] + state.tShift[start];
  const open = state.src.slice(from, from + 2);
  const close = BLOCKS.get(open);
  if (!close) return false;
  let line = start;
  let text = state.src.slice(from + 2, state.eMarks[start]).trim();
  const lines = [];
  while (!text.endsWith(close)) {
    if (text.includes(close)) return false;
    lines.push(text);
    line += 1;
    if (line >= end || state.sCount[line] < state.blkIndent) return false;
    text = state.src.slice(state.bMarks[line] + state.tShift[line], state.eMarks[line]).trim();
  }
  if (silent) return true;
  lines.push(text.slice(0, -2));
  state.line = line + 1;
  const token = state.push('math_block', '', 0);
  token.content = lines.join('\n').trim();
  token.map = [start, line + 1];
  return true;
}

/**
 * An inline rule.
 *
 * @param {any} state markdown-it's
 * @param {boolean} silent
 */
function takeInline(state, silent) {
  const found = inlineAt(state.src, state.pos);
  if (!found) return false;
  if (!silent) {
    const token = state.push(found.display ? 'math_block' : 'math_inline', '', 0);
    token.content = found.tex.trim();
  }
  state.pos = found.end;
  return true;
}

/**
 * @param {string} text
 * @param {number} at
 * @returns {{tex: string, end: number, display: boolean} | null}
 */
function inlineAt(text, at) {
  const open = text.slice(at, at + 2);
  const close = open === '\\(' ? '\\)' : BLOCKS.get(open);
  if (close) {
    const end = text.slice(at + 2, at + 2 + LONGEST).indexOf(close) + at + 2;
    if (end <= at + 2) return null;
    return { tex: text.slice(at + 2, end), end: end + 2, display: open !== '\\(' };
  }
  if (open[0] !== '$') return null;
  const pattern = /\$(?=[^\s$])((?:\\.|[^$\\\n])*?[^\s\\$]|[^\s\\$])\$(?!\d)/y;
  pattern.lastIndex = at;
  const match = pattern.exec(text);
  return match && { tex: match[1], end: pattern.lastIndex, display: false };
}

/**
 * TeX as MathML, or as written until the library is there.
 *
 * @param {string} tex
 * @param {boolean} display on a line of its own
 * @returns {HTMLElement}
 */
export function mathNode(tex, display) {
  const properties = display
    ? { className: 'math wide', tabIndex: 0, role: 'group', 'aria-label': 'Formula' }
    : { className: 'math' };
  const element = make(display ? 'div' : 'span', properties, make('code', {}, tex));
  if (temml) {
    set(temml, element, tex, display);
  } else {
    loaded().then(() => temml && set(temml, element, tex, display), () => {});
  }
  return element;
}

/** @returns {Promise<void>} */
function loaded() {
  loading ??= import('./vendor/temml.js').then((module) => {
    temml = module.default;
  });
  return loading;
}

/**
 * @param {Temml} library
 * @param {HTMLElement} element
 * @param {string} tex
 * @param {boolean} displayMode
 */
function set(library, element, tex, displayMode) {
  const made = make('span');
  try {
    library.render(tex, made, { displayMode, throwOnError: true, trust: false, maxExpand: 200 });
    element.replaceChildren(...made.childNodes);
  } catch {
    // Not TeX that it knows: the text stays.
  }
}
