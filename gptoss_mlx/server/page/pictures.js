/** Pictures that python made, as data URLs: an image of one runs no script and fetches nothing. */

import { fileContent } from './api.js';

/** @import { Figure } from './responses.js' */

const LARGEST = 8 << 20; // bytes that are shown and kept in a conversation
const SVG = /^\s*(<\?xml[^>]*>\s*)?(<!--[\s\S]*?-->\s*|<!DOCTYPE[^>]*>\s*)*<svg[\s>]/i;

/**
 * Reads a figure's picture; what cannot be had or shown stays a file.
 *
 * @param {Figure} figure
 */
export async function readPicture(figure) {
  try {
    const blob = await fileContent(figure);
    const type = blob.size <= LARGEST && (await typeOf(blob));
    if (type) figure.data = await dataURL(new Blob([blob], { type }));
  } catch {
    // It is named among the files, which say what is wrong when they are asked for.
  }
}

/**
 * @param {Blob} blob
 * @returns {Promise<string>} by its first bytes; nothing for what is no picture
 */
async function typeOf(blob) {
  const bytes = new Uint8Array(await blob.slice(0, 4096).arrayBuffer());
  const begin = String.fromCharCode(...bytes.slice(0, 12));
  if (begin.startsWith('\x89PNG')) return 'image/png';
  if (begin.startsWith('\xff\xd8\xff')) return 'image/jpeg';
  if (begin.startsWith('GIF8')) return 'image/gif';
  if (begin.startsWith('RIFF') && begin.endsWith('WEBP')) return 'image/webp';
  return SVG.test(new TextDecoder().decode(bytes)) ? 'image/svg+xml' : '';
}

/**
 * @param {Blob} blob
 * @returns {Promise<string>}
 */
function dataURL(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
