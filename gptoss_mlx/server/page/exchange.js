/**
 * Conversations as files: one JSON object with a list, written by an export and read by an import.
 */

import { newId, restore, titleOf } from './conversation.js';
import { download } from './dom.js';

/** @import { Conversation } from './conversation.js' */
/** @import { Store } from './store.js' */

const FORMAT = 'gptoss-mlx conversations';

/** @param {Conversation[]} conversations none: nothing is written */
export function exportConversations(conversations) {
  const [first] = conversations;
  if (!first) return;
  const words = conversations.length === 1 ? titleOf(first) : 'conversations';
  const name = words.replace(/[^\p{L}\p{N}]+/gu, '-').replace(/^-|-$/g, '').toLowerCase();
  download(`${name || 'conversation'}.json`, { format: FORMAT, version: 1, conversations });
}

/**
 * Stores the conversations of a file. One whose id is taken by another text gets a new id; one that
 * is there already is left out.
 *
 * @param {Store} store
 * @param {File} file
 * @returns {Promise<{count: number, id: string}>} how many were stored, and the last
 * @throws {Error} with a sentence for the person, before anything is stored
 */
export async function importConversations(store, file) {
  let value;
  try {
    value = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is not JSON.`);
  }
  if (!Array.isArray(value?.conversations)) {
    throw new Error(`${file.name} holds no conversations.`);
  }
  const restored = value.conversations.map(restore);
  const wrong = restored.indexOf(null);
  if (wrong >= 0) throw new Error(`Conversation ${wrong + 1} of ${file.name} cannot be read.`);
  let count = 0;
  let id = '';
  for (const conversation of restored) {
    const there = await store.get(conversation.id);
    id = conversation.id;
    if (there && JSON.stringify(there.messages) === JSON.stringify(conversation.messages)) continue;
    if (there) id = conversation.id = newId();
    conversation.revision = 0;
    await store.put(conversation);
    count += 1;
  }
  return { count, id };
}
