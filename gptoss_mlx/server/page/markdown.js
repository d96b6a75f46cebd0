/**
 * Markdown as DOM nodes, built from markdown-it's tokens while the text still grows.
 *
 * A model's text is never HTML: tags in it are text, links lead to http, https and mailto only, and
 * images are links. While text streams, blocks that have ended are left alone; only the last one is
 * parsed and built again. When the text has ended the whole is parsed once, so that the result does
 * not depend on how it came.
 */

import MarkdownIt from './vendor/markdown-it.js';
import { codeBlock, finishCode, growCode } from './code.js';
import { make } from './dom.js';
import { addMath, mathNode } from './math.js';

/**
 * @typedef {object} Token what is used of markdown-it's
 * @property {string} type
 * @property {string} tag
 * @property {string} content
 * @property {string} info
 * @property {boolean} hidden
 * @property {number} nesting 1 opens, -1 closes
 * @property {[number, number] | null} map lines, the end not included
 * @property {Token[] | null} children
 * @property {(name: string) => string | number | null} attrGet
 *
 * @typedef {object} Block a block that stands in no other
 * @property {Token[]} tokens
 * @property {number} line
 * @property {string} source
 */

const LINK = /^(https?:\/\/|mailto:)/i;
const OWN_FILE = /^sandbox:\/mnt\/data\//; // what python made, which the page offers elsewhere
const TAGS = new Set(
  ('p ul ol li blockquote thead tbody tr th td em strong s br hr ' +
    'h1 h2 h3 h4 h5 h6 table').split(' '),
);
const HEADING_SHIFT = 2; // the page has the first two levels
const DEEPEST = 16; // blocks in blocks; what is deeper is shown as text
const DEEPEST_INLINE = 40;

export const parser = new (/** @type {any} */ (MarkdownIt))({ html: false, linkify: true });
parser.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
parser.validateLink = (/** @type {string} */ url) =>
  LINK.test(url) || OWN_FILE.test(url);
parser.block.ruler.before('code', 'deep', takeDeepAsText);
addMath(parser);

/**
 * A block rule: what is nested too deep is one paragraph, and nothing of it is lost.
 *
 * @param {any} state markdown-it's
 * @param {number} start
 * @param {number} end
 * @param {boolean} silent
 */
function takeDeepAsText(state, start, end, silent) {
  if (state.level < DEEPEST) return false;
  if (silent) return true;
  state.line = end;
  const open = state.push('paragraph_open', 'p', 1);
  open.map = [start, end];
  const inline = state.push('inline', '', 0);
  inline.content = state.getLines(start, end, state.blkIndent, false).trim();
  inline.map = [start, end];
  inline.children = [];
  state.push('paragraph_close', 'p', -1);
  return true;
}

/** Shows a text that grows in a container of its own. */
export class Markdown {
  /** @type {HTMLElement} */
  #container;
  /** @type {string[]} the source of each child, and of those that may still change the last */
  #sources = [];
  #settled = 0; // children that stay
  #from = 0; // where in the text the others begin
  #length = 0;
  #finished = false;

  /** @param {HTMLElement} container */
  constructor(container) {
    this.#container = container;
  }

  /** @param {string} text what came so far: the text before and more */
  update(text) {
    if (text.length === this.#length) return;
    if (text.length < this.#length) this.#clear();
    this.#finished = false;
    this.#length = text.length;
    const rest = text.slice(this.#from);
    const blocks = parse(rest);
    this.#show(blocks, this.#settled);
    // A line that is not complete may turn out to go on the block before it.
    const open = blocks.findLastIndex(({ line }) => lineStart(rest, line + 2) >= 0);
    if (open < 1) return;
    for (let index = 0; index < open; index += 1) {
      finishCode(this.#container.children[this.#settled + index]);
    }
    this.#settled += open;
    this.#from += lineStart(rest, blocks[open].line);
  }

  /** @param {string} text all of it */
  finish(text) {
    if (this.#finished && text.length === this.#length) return;
    this.#finished = true;
    /** @type {{references?: object}} */
    const env = {};
    const blocks = parse(text, env);
    if (env.references) this.#clear(); // links may have been text before
    this.#show(blocks, 0);
    this.#settled = blocks.length;
    this.#from = this.#length = text.length;
    for (const child of this.#container.children) finishCode(child);
  }

  #clear() {
    this.#container.replaceChildren();
    this.#sources = [];
    this.#settled = this.#from = this.#length = 0;
  }

  /**
   * Makes the children from `first` on those of some blocks. A child whose source is the same stays,
   * with what is selected in it; code that has grown gets the rest.
   *
   * @param {Block[]} blocks
   * @param {number} first
   */
  #show(blocks, first) {
    const { children } = this.#container;
    blocks.forEach((block, index) => {
      const at = first + index;
      const child = children[at];
      if (child && this.#sources[at] === block.source) return;
      const [token] = block.tokens;
      const grown = child && token.type === 'fence' && growCode(child, token.content, token.info);
      if (!grown) {
        const node = build(block.tokens);
        if (child) child.replaceWith(node);
        else this.#container.append(node);
      }
      this.#sources[at] = block.source;
    });
    const count = first + blocks.length;
    while (children.length > count) children[count].remove();
    this.#sources.length = count;
  }
}

/**
 * @param {string} text
 * @param {object} [env]
 * @returns {Block[]}
 */
function parse(text, env = {}) {
  const lines = text.split('\n');
  /** @type {Block[]} */
  const blocks = [];
  let depth = 0;
  for (const token of /** @type {Token[]} */ (parser.parse(text, env))) {
    if (depth === 0) {
      const [line, end] = token.map ?? [0, 0];
      blocks.push({ tokens: [], line, source: lines.slice(line, end).join('\n') });
    }
    blocks.at(-1)?.tokens.push(token);
    depth += token.nesting;
  }
  return blocks;
}

/**
 * @param {string} text
 * @param {number} line
 * @returns {number} where the line begins, or -1 where the text ends before
 */
function lineStart(text, line) {
  let at = 0;
  for (let count = 0; count < line; count += 1) {
    at = text.indexOf('\n', at) + 1;
    if (at === 0) return -1;
  }
  return at;
}

/**
 * @param {Token[]} tokens of one block
 * @returns {HTMLElement}
 */
function build(tokens) {
  const root = make('div');
  fill(root, tokens, 0);
  const first = root.firstElementChild;
  return first instanceof HTMLElement ? first : root;
}

/**
 * Appends what tokens say. An element opened is entered, unless it lies too deep.
 *
 * @param {HTMLElement} root
 * @param {Token[]} tokens
 * @param {number} depth
 */
function fill(root, tokens, depth) {
  const stack = [root];
  for (const token of tokens) {
    const top = stack[stack.length - 1];
    if (token.nesting < 0) {
      if (!token.hidden) stack.pop();
    } else if (token.nesting > 0) {
      if (token.hidden) continue;
      const tooDeep = depth + stack.length > DEEPEST_INLINE;
      const element = tooDeep ? null : opened(token);
      if (element) top.append(frame(element));
      stack.push(element ?? top);
    } else if (token.type === 'inline') {
      fill(top, token.children ?? [], depth + stack.length);
    } else {
      top.append(leaf(token));
    }
  }
}

/**
 * @param {Token} token
 * @returns {HTMLElement | null}
 */
function opened(token) {
  if (token.type === 'link_open') return link(String(token.attrGet('href') ?? ''));
  if (!TAGS.has(token.tag)) return null;
  const heading = /^h([1-6])$/.exec(token.tag);
  const tag = heading ? `h${Math.min(6, Number(heading[1]) + HEADING_SHIFT)}` : token.tag;
  const element = make(/** @type {'p'} */ (tag));
  const start = Number(token.attrGet('start') ?? 1);
  if (element instanceof HTMLOListElement && start !== 1) element.start = start;
  const align = /text-align:(right|center)/.exec(String(token.attrGet('style') ?? ''));
  if (align) element.classList.add(align[1]);
  return element;
}

/**
 * A table in a frame that scrolls, by the keyboard too; anything else as it is.
 *
 * @param {HTMLElement} element
 */
function frame(element) {
  if (element.tagName !== 'TABLE') return element;
  const properties = { className: 'wide', tabIndex: 0, role: 'group', 'aria-label': 'Table' };
  return make('div', properties, element);
}

/**
 * @param {string} href
 * @returns {HTMLAnchorElement | null}
 */
function link(href) {
  if (!LINK.test(href)) return null;
  return make('a', { href, target: '_blank', rel: 'noopener noreferrer' });
}

/**
 * @param {Token} token that has nothing inside but text
 * @returns {Node}
 */
function leaf(token) {
  switch (token.type) {
    case 'fence':
    case 'code_block':
      return codeBlock(token.content, token.info);
    case 'code_inline':
      return make('code', {}, token.content);
    case 'math_inline':
    case 'math_block':
      return mathNode(token.content, token.type === 'math_block', token.info !== 'open');
    case 'hardbreak':
      return make('br');
    case 'hr':
      return make('hr');
    case 'softbreak':
      return new Text('\n');
    case 'image': {
      const text = token.content || 'image';
      const anchor = link(String(token.attrGet('src') ?? ''));
      anchor?.append(`${text} (image)`);
      return anchor ?? new Text(text);
    }
    default:
      return new Text(token.content);
  }
}
