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
 * A block rule: from a line that begins with a mark to the line that ends with its other, with no
 * empty line between. One that still lacks its end is a formula too, as an open fence is code.
 *
 * @param {any} state markdown-it's
 * @param {number} start
 * @param {number} end
 * @param {boolean} silent
 */
function takeBlock(state, start, end, silent) {
  const lineAt = (/** @type {number} */ line) =>
    state.src.slice(state.bMarks[line] + state.tShift[line], state.eMarks[line]).trim();
  const close = BLOCKS.get(lineAt(start).slice(0, 2));
  if (!close) return false;
  const lines = [lineAt(start).slice(2)];
  let line = start + 1;
  while (!lines[lines.length - 1].includes(close) && line < end) {
    const text = lineAt(line);
    if (!text || state.sCount[line] < state.blkIndent) return false;
    lines.push(text);
    line += 1;
  }
  const tex = lines.join('\n');
  const at = tex.indexOf(close);
  if (at >= 0 && tex.slice(at + close.length).trim()) return false;
  if (silent) return true;
  state.line = line;
  const token = state.push('math_block', '', 0);
  token.content = (at < 0 ? tex : tex.slice(0, at)).trim();
  token.info = at < 0 ? 'open' : '';
  token.map = [start, line];
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
 * @param {boolean} [complete]
 * @returns {HTMLElement}
 */
export function mathNode(tex, display, complete = true) {
  const properties = display
    ? { className: 'math wide', tabIndex: 0, role: 'group', 'aria-label': 'Formula' }
    : { className: 'math' };
  const element = make(display ? 'div' : 'span', properties, make('code', {}, tex));
  if (!complete) return element;
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
