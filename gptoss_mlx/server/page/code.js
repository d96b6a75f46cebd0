/**
 * Code blocks: the language, a button that copies, and quiet colours for comments, strings, numbers
 * and keywords. The colours come from a scan for what nearly all languages share, not from grammars.
 */

import { copyButton, make } from './dom.js';

const LONGEST = 60_000; // characters that are coloured; more stays plain

const HASH = /^(py|python|sh|bash|shell|zsh|console|rb|ruby|r|perl|yaml|yml|toml|ini|make|makefile|cmake|docker|dockerfile|elixir|julia|nix|graphql|conf)$/;
const DASHES = /^(sql|postgresql|mysql|lua|haskell|hs|ada|elm)$/;
const MARKUP = /^(html|xml|svg|vue|xhtml)$/;
const PLAIN = /^(|text|txt|plain|plaintext|output|log|markdown|md)$/;

const KEYWORDS = new Set(
  ('abstract and as assert async await begin bool break case catch char class const continue def ' +
    'default defer del delete do double elif else elseif end enum except export extends extern ' +
    'false final finally float fn for foreach from func function global goto if impl implements ' +
    'import in instanceof int interface is lambda let local long loop match mod module mut ' +
    'namespace new nil none nonlocal not null or package pass private protected pub public raise ' +
    'record return select self short signed sizeof static string struct super switch template ' +
    'then this throw throws trait true try type typedef typeof union unsafe unsigned use using ' +
    'val var virtual void volatile when where while with yield ' +
    'create table insert into values update set join left right inner outer on group by order ' +
    'having limit distinct primary key references').split(' '),
);
const SQL_WORD = 'create';
const SQL_WORDS = new Set([...KEYWORDS].slice([...KEYWORDS].indexOf(SQL_WORD)));

const STRING = String.raw`"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'|${'`'}(?:\\.|[^${'`'}\\])*${'`'}?`;
const NUMBER = String.raw`\b0[xXbBoO][\da-fA-F_]+\b|\b\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?\b`;
const WORD = String.raw`[A-Za-z_$][\w$]*`;

/** @type {WeakMap<Element, {text: string, info: string, code: HTMLElement}>} */
const blocks = new WeakMap();

/**
 * @param {string} text
 * @param {string} info what follows the fence: the language first
 * @param {Node | string} [heading] in place of the language
 * @returns {HTMLElement}
 */
export function codeBlock(text, info, heading) {
  const language = languageOf(info);
  const code = make('code', {}, new Text(shown(text)));
  const copy = copyButton('Copy code', () => code.textContent ?? '');
  const name = make('span', {}, heading ?? (language || 'text'));
  const label = language ? `Code in ${language}` : 'Code';
  const body = make('pre', { tabIndex: 0, role: 'group', 'aria-label': label }, code);
  const figure = make('figure', { className: 'code' }, make('figcaption', {}, name, copy), body);
  blocks.set(figure, { text, info, code });
  return figure;
}

/**
 * Lets a block's code grow, when the new text begins with the old.
 *
 * @param {Element} figure
 * @param {string} text
 * @param {string} info
 * @returns {boolean} whether it did
 */
export function growCode(figure, text, info) {
  const block = blocks.get(figure);
  const node = block?.code.firstChild;
  if (!block || !(node instanceof Text) || block.code.childNodes.length !== 1) return false;
  if (block.info !== info || !text.startsWith(block.text)) return false;
  const before = shown(block.text);
  node.appendData(shown(text).slice(before.length));
  block.text = text;
  return true;
}

/**
 * Colours the code blocks in an element, when no more will come.
 *
 * @param {Element} element
 */
export function finishCode(element) {
  const isOne = element.matches('figure.code');
  const figures = isOne ? [element] : element.querySelectorAll('figure.code');
  for (const figure of figures) {
    const block = blocks.get(figure);
    if (!block || block.code.childElementCount) continue;
    const language = languageOf(block.info);
    if (PLAIN.test(language) || block.text.length > LONGEST) continue;
    block.code.replaceChildren(...coloured(shown(block.text), language));
  }
}

/** @param {string} info */
function languageOf(info) {
  return info.trim().split(/\s+/)[0].toLowerCase().slice(0, 24);
}

/** @param {string} text of a fence, which ends with a newline */
function shown(text) {
  return text.replace(/\n$/, '');
}

/**
 * @param {string} text
 * @param {string} language
 * @returns {Node[]}
 */
export function coloured(text, language) {
  if (language === 'diff' || language === 'patch') return diff(text);
  const sql = language.includes('sql');
  const pattern = new RegExp(`(${comment(language)})|(${STRING})|(${NUMBER})|(${WORD})`, 'g');
  /** @type {Node[]} */
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(pattern)) {
    const kind = kindOf(match, sql);
    if (!kind) continue;
    if (match.index > at) nodes.push(new Text(text.slice(at, match.index)));
    nodes.push(make('span', { className: `code-${kind}` }, match[0]));
    at = match.index + match[0].length;
  }
  nodes.push(new Text(text.slice(at)));
  return nodes;
}

/**
 * @param {RegExpMatchArray} match
 * @param {boolean} sql
 * @returns {string} nothing for a plain word
 */
function kindOf([, isComment, isString, isNumber, word], sql) {
  if (isComment !== undefined) return 'comment';
  if (isString !== undefined) return 'string';
  if (isNumber !== undefined) return 'number';
  if (sql) return KEYWORDS.has(word.toLowerCase()) ? 'keyword' : '';
  const name = word === 'None' || word === 'True' || word === 'False' ? word.toLowerCase() : word;
  return KEYWORDS.has(name) && !SQL_WORDS.has(name) ? 'keyword' : '';
}

/**
 * @param {string} language
 * @returns {string} a regular expression's source
 */
function comment(language) {
  if (HASH.test(language)) return String.raw`#[^\n]*`;
  if (DASHES.test(language)) return String.raw`--[^\n]*|/\*[\s\S]*?\*/`;
  if (MARKUP.test(language)) return String.raw`<!--[\s\S]*?-->`;
  return String.raw`//[^\n]*|/\*[\s\S]*?(?:\*/|$)`;
}

/**
 * @param {string} text
 * @returns {Node[]}
 */
function diff(text) {
  return text.split(/(?<=\n)/).map((line) => {
    const kind = { '+': 'added', '-': 'removed', '@': 'comment' }[line[0]];
    return kind ? make('span', { className: `code-${kind}` }, line) : new Text(line);
  });
}
