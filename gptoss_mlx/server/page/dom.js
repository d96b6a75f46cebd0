/**
 * DOM construction: elements, icons, the clipboard and downloads.
 *
 * Text becomes text nodes only: nothing here, or anywhere in the page, parses HTML.
 */

const SVG = 'http://www.w3.org/2000/svg';

/** Stroke paths on a grid of 20. */
const ICONS = {
  check: 'M4 10.5l4 4 8-9',
  close: 'M5 5l10 10M15 5L5 15',
  copy: 'M7.5 7.5h9v9h-9zM12.5 7.5v-4h-9v9h4',
  down: 'M10 4v12M5 11l5 5 5-5',
  export: 'M10 3v9M6 8.5l4 4 4-4M4 16.5h12',
  menu: 'M3 6h14M3 10h14M3 14h9',
  pencil: 'M4 16l1-4 8.5-8.5 3 3L8 15zM11.5 5.5l3 3',
  plus: 'M10 4v12M4 10h12',
  retry: 'M15.5 7A6.5 6.5 0 1 0 16.5 11M16 3v4.5h-4.5',
  send: 'M10 16.5v-13M4.5 9L10 3.5 15.5 9',
  sliders: 'M3 6h8M15 6h2M3 14h2M9 14h8M13 4v4M7 12v4',
  stop: 'M6 6h8v8H6z',
  tool: 'M12 4a4 4 0 0 0-3.5 5.5L3.5 14.5a1.4 1.4 0 0 0 2 2l5-5A4 4 0 0 0 16 8l-2.5 1.5-2-2L13 4.8',
  trash: 'M4 6h12M8 6V3.5h4V6M5.5 6l.7 10.5h7.6L14.5 6',
};

/**
 * An element. A property that is a function and begins with "on" listens; one the element knows is
 * set; any other becomes an attribute. Null and false children are left out.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, unknown>} [properties]
 * @param {...(Node | string | null | false)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith('on') && typeof value === 'function') {
      element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    } else if (name in element) {
      Reflect.set(element, name, value);
    } else {
      element.setAttribute(name, String(value));
    }
  }
  for (const child of children) {
    if (child !== null && child !== false) element.append(child);
  }
  return element;
}

/**
 * @param {keyof typeof ICONS} name
 * @returns {SVGElement}
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  const path = document.createElementNS(SVG, 'path');
  path.setAttribute('d', ICONS[name]);
  svg.setAttribute('viewBox', '0 0 20 20');
  svg.setAttribute('aria-hidden', 'true');
  svg.setAttribute('class', `icon icon-${name}`);
  svg.append(path);
  return svg;
}

/**
 * A button with an icon, named by its label for those who do not see it.
 *
 * @param {keyof typeof ICONS} name
 * @param {string} label
 * @param {() => void} act
 * @returns {HTMLButtonElement}
 */
export function iconButton(name, label, act) {
  const properties = { type: 'button', className: 'icon-button', title: label, onclick: act };
  return make('button', { ...properties, 'aria-label': label }, icon(name));
}

/**
 * The element with an id, which index.html promises.
 *
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} type
 * @returns {T}
 */
export function find(id, type) {
  const element = document.getElementById(id);
  if (!(element instanceof type)) throw new Error(`index.html has no ${type.name} named ${id}`);
  return element;
}

/**
 * A button that copies what `read` returns, and says so for two seconds.
 *
 * @param {string} label
 * @param {() => string} read
 * @returns {HTMLButtonElement}
 */
export function copyButton(label, read) {
  const button = iconButton('copy', label, async () => {
    const copied = await copyText(read());
    button.replaceChildren(icon(copied ? 'check' : 'close'));
    button.setAttribute('aria-label', copied ? 'Copied' : 'Could not be copied');
    setTimeout(() => {
      button.replaceChildren(icon('copy'));
      button.setAttribute('aria-label', label);
    }, 2000);
  });
  return button;
}

/**
 * Puts text on the clipboard. Plain HTTP from another machine has no `navigator.clipboard`.
 *
 * @param {string} text
 * @returns {Promise<boolean>} whether it is there
 */
export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Refused, for example without focus: the older way may still be allowed.
    }
  }
  const area = make('textarea', { value: text, className: 'visually-hidden' });
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const copied = document.execCommand('copy');
  area.remove();
  if (focused instanceof HTMLElement) focused.focus();
  return copied;
}

/**
 * Saves a value as a JSON file.
 *
 * @param {string} name
 * @param {unknown} value
 */
export function download(name, value) {
  const text = JSON.stringify(value, null, 2) + '\n';
  saveFile(name, new Blob([text], { type: 'application/json' }));
}

/**
 * Saves bytes as a file.
 *
 * @param {string} name
 * @param {Blob} blob
 */
export function saveFile(name, blob) {
  const link = make('a', { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
