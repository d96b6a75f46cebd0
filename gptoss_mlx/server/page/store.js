/**
 * The browser's storage: conversations in IndexedDB, small preferences in localStorage.
 *
 * Nothing here throws for what a browser refuses. Where there is no storage, or it is full,
 * conversations live in memory until the page closes, and `onProblem` is told once.
 */

import { newId, restore, restoreOptions, titleOf } from './conversation.js';

/** @import { Conversation, Options } from './conversation.js' */

/**
 * @typedef {object} Head what the list of conversations shows
 * @property {string} id
 * @property {string} title
 * @property {number} updated
 */

const DATABASE = 'gptoss';
const TABLE = 'conversations';

export class Store {
  /** @type {IDBDatabase | null} */
  #database = null;
  /** @type {Map<string, Conversation>} what could not be stored */
  #unstored = new Map();
  /** @type {BroadcastChannel | null} */
  #channel = null;
  /** @type {Map<string, Head>} */
  #heads = new Map();
  /** @type {Promise<void> | null} the first reading of all records */
  #read = null;
  #told = new Set();

  /** Another tab has changed a conversation. */
  onChange = (/** @type {string} */ _id) => {};
  /** The browser does not keep what it should. */
  onProblem = (/** @type {string} */ _text) => {};

  /** @returns {Promise<void>} */
  async open() {
    try {
      this.#database = await opened();
      this.#database.onversionchange = () => this.#database?.close();
      this.#channel = new BroadcastChannel(DATABASE);
      this.#channel.onmessage = ({ data }) => this.#changed(String(data));
    } catch {
      this.#tell('This browser keeps nothing: conversations last until the page is closed.');
    }
  }

  /**
   * Heads of the conversations that have a text in their title or messages, in any case, the newest
   * first. Records that are no conversations are left where they are, and told of.
   *
   * @param {string} text
   * @returns {Promise<Head[]>}
   */
  async search(text) {
    if (!this.#read) this.#read = this.#each((found) => this.#heads.set(found.id, head(found)));
    await this.#read;
    let heads = [...this.#heads.values()];
    if (text) {
      const found = new Set();
      const look = (/** @type {Conversation} */ one) => has(one, text) && found.add(one.id);
      await this.#each(look);
      this.#unstored.forEach(look);
      heads = heads.filter(({ id }) => found.has(id));
    }
    return heads.sort((a, b) => b.updated - a.updated);
  }

  /** @returns {Promise<Conversation[]>} */
  async all() {
    /** @type {Map<string, Conversation>} */
    const found = new Map();
    await this.#each((conversation) => found.set(conversation.id, conversation));
    for (const conversation of this.#unstored.values()) found.set(conversation.id, conversation);
    return [...found.values()];
  }

  /**
   * @param {string} id
   * @returns {Promise<Conversation | null>}
   */
  async get(id) {
    const unstored = this.#unstored.get(id);
    if (unstored) return unstored;
    try {
      return restore(await settled(this.#table('readonly').get(id)));
    } catch {
      return null;
    }
  }

  /**
   * Stores a conversation. Where another tab has stored a newer one, this one becomes a copy with
   * an id of its own, so that neither is lost.
   *
   * @param {Conversation} conversation
   * @returns {Promise<boolean>} whether it has become a copy
   */
  async put(conversation) {
    conversation.updated = Date.now();
    let copied = false;
    try {
      const table = this.#table('readwrite');
      const stored = await settled(table.get(conversation.id));
      if (restore(stored) && stored.revision > conversation.revision) {
        conversation.id = newId();
        conversation.title = `${titleOf(conversation)} (other tab)`;
        copied = true;
      }
      const { transaction } = table;
      table.put({ ...conversation, revision: conversation.revision + 1 });
      await committed(transaction);
      conversation.revision += 1;
      this.#unstored.delete(conversation.id);
      this.#channel?.postMessage(conversation.id);
    } catch {
      this.#unstored.set(conversation.id, conversation);
      this.#tell(
        'The browser cannot store this conversation: its storage is full or closed. Export it, ' +
          'or delete others.',
      );
    }
    this.#heads.set(conversation.id, head(conversation));
    return copied;
  }

  /** @param {string} id */
  async remove(id) {
    this.#unstored.delete(id);
    this.#heads.delete(id);
    try {
      const table = this.#table('readwrite');
      table.delete(id);
      await committed(table.transaction);
      this.#channel?.postMessage(id);
    } catch {
      this.#tell("The browser's storage does not answer: what was deleted may come back.");
    }
  }

  /**
   * @param {IDBTransactionMode} mode
   * @returns {IDBObjectStore}
   */
  #table(mode) {
    if (!this.#database) throw new Error('no database');
    return this.#database.transaction(TABLE, mode).objectStore(TABLE);
  }

  /** @param {string} id of a conversation that another tab has stored or deleted */
  async #changed(id) {
    const stored = await this.get(id);
    if (stored) this.#heads.set(id, head(stored));
    else this.#heads.delete(id);
    this.onChange(id);
  }

  /** @param {(conversation: Conversation) => void} visit */
  async #each(visit) {
    if (!this.#database) return;
    let damaged = 0;
    try {
      const request = this.#table('readonly').openCursor();
      await new Promise((resolve, reject) => {
        request.onerror = () => reject(request.error);
        request.onsuccess = () => {
          const cursor = request.result;
          if (!cursor) return resolve(null);
          const conversation = restore(cursor.value);
          if (conversation) visit(conversation);
          else damaged += 1;
          cursor.continue();
        };
      });
    } catch {
      this.#tell("The browser's storage cannot be read: conversations kept there are not shown.");
    }
    if (damaged) {
      const what = damaged === 1 ? 'One conversation' : `${damaged} conversations`;
      this.#tell(`${what} in this browser's storage cannot be read and is left as it is.`);
    }
  }

  /** @param {string} text */
  #tell(text) {
    if (!this.#told.has(text)) this.onProblem(text);
    this.#told.add(text);
  }
}

/** @returns {Promise<IDBDatabase>} */
function opened() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: 'id' });
  return settled(request);
}

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/**
 * @param {IDBTransaction} transaction
 * @returns {Promise<void>}
 */
function committed(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error);
  });
}

/**
 * @param {Conversation} conversation
 * @returns {Head}
 */
function head(conversation) {
  const { id, updated } = conversation;
  return { id, title: titleOf(conversation), updated };
}

/**
 * @param {Conversation} conversation
 * @param {string} text
 */
function has(conversation, text) {
  const texts = [titleOf(conversation), ...conversation.messages.map(({ content }) => content)];
  return texts.some((one) => one.toLowerCase().includes(text.toLowerCase()));
}

/**
 * A preference, or `otherwise` where there is none or it cannot be read.
 *
 * @template T
 * @param {string} name
 * @param {T} otherwise
 * @returns {T}
 */
export function preference(name, otherwise) {
  try {
    const text = localStorage.getItem(`gptoss.${name}`);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

/** @returns {Options} for new conversations */
export function keptOptions() {
  return restoreOptions(preference('options', null));
}

/**
 * Keeps a preference, where the browser does.
 *
 * @param {string} name
 * @param {unknown} value
 */
export function setPreference(name, value) {
  try {
    localStorage.setItem(`gptoss.${name}`, JSON.stringify(value));
  } catch {
    // It lasts as long as the page then.
  }
}
