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
 * A block rule: from a line that begins with a mark to the one that ends with its other, or to an
 * empty line. What has no proper end is a block as well, as an open fence is code: whether the lines
 * are one must not depend on what follows them, since what stands before is not built again.
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
  let tex = lineAt(start).slice(2);
  if (tex.includes(close) && !tex.endsWith(close)) return false;
  if (silent) return true;
  let line = start + 1;
  while (!tex.includes(close) && line < end) {
    if (!lineAt(line) || state.sCount[line] < state.blkIndent) break;
    tex += `\n${lineAt(line)}`;
    line += 1;
  }
  const complete = tex.endsWith(close);
  state.line = line;
  const token = state.push('math_block', '', 0);
  token.content = (complete ? tex.slice(0, -close.length) : tex).trim();
  token.info = complete ? '' : 'open';
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
