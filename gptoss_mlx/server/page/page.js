/**
 * The page: which conversation is shown, which answers run, and what the parts tell each other.
 *
 * The address names the conversation (`#id`), so that a reload and the back button find it.
 */

import { Answer } from './answer.js';
import { ApiError, approve, ConnectionLost, fileContent } from './api.js';
import { Composer } from './composer.js';
import { contextUsed, newConversation, openCalls, titleOf } from './conversation.js';
import { find, saveFile } from './dom.js';
import { exportConversations, importConversations } from './exchange.js';
import { listenForKeys } from './keys.js';
import { announce, dismiss, note, tell } from './notes.js';
import { Server } from './server.js';
import { Settings } from './settings.js';
import { Sidebar } from './sidebar.js';
import { keptOptions, setPreference, Store } from './store.js';
import { Transcript } from './transcript.js';

/** @import { Conversation, Message, Options } from './conversation.js' */

const SAVE_EVERY = 2000; // milliseconds, while an answer grows

class Page {
  #store = new Store();
  #server = new Server();
  /** @type {Map<string, Answer>} by conversation */
  #answers = new Map();
  #conversation = newConversation(keptOptions());
  #retryWithKey = false; // the last answer was refused for want of one

  #transcript = new Transcript({
    retry: (message) => this.#replace(message, []),
    edit: (message, content) => this.#replace(message, [{ ...message, content }]),
    answerCalls: (results) => this.#answerCalls(results),
    approve: (message, id, mayRun) => tell('approval', approve(message.response ?? '', id, mayRun)),
    save: (file) => tell('file', fileContent(file).then((blob) => saveFile(file.name, blob))),
  });
  #composer = new Composer({
    send: (text) => this.#send(text),
    stop: () => this.#stop(),
    editLast: () => this.#transcript.editLast(),
    choose: (change) => this.#choose(change),
  });
  #settings = new Settings({
    options: () => this.#conversation.options,
    choose: (change) => this.#choose(change),
    keep: () => this.#keepOptions(),
    exportAll: () => this.#exportAll(),
    importFile: (file) => this.#import(file),
    keyChanged: () => this.#keyChanged(),
  });
  #sidebar = new Sidebar(this.#store, {
    begin: () => this.#openNew(),
    rename: (id, title) => this.#rename(id, title),
    remove: (id) => this.#remove(id),
    save: async (id) => exportConversations([await this.#find(id)].filter((one) => one !== null)),
  });

  async start() {
    this.#store.onProblem = (text) => {
      note(text, text, { label: 'Export all', act: () => this.#exportAll() });
    };
    this.#store.onChange = (id) => this.#changedElsewhere(id);
    this.#server.onChange = () => this.#serverChanged();
    this.#server.onRefused = () => this.#askKey();
    listenForKeys({
      stop: () => this.#stop(),
      search: () => this.#sidebar.focusSearch(),
      begin: () => this.#openNew(),
    });
    addEventListener('hashchange', () => this.#openAddress());
    addEventListener('pagehide', () => this.#saveRunning());
    this.#server.watch();
    await this.#store.open();
    await this.#openAddress();
  }

  /** @returns {Answer | null} that runs in the conversation shown */
  get #answer() {
    return this.#answers.get(this.#conversation.id) ?? null;
  }

  /**
   * A conversation as the page holds it, which may be ahead of the store, or as it is stored.
   *
   * @param {string} id
   * @returns {Promise<Conversation | null>}
   */
  async #find(id) {
    if (this.#conversation.id === id) return this.#conversation;
    return this.#answers.get(id)?.conversation ?? (await this.#store.get(id));
  }

  /** @returns {boolean} whether there was an answer to stop */
  #stop() {
    this.#answer?.stop();
    return this.#answer !== null;
  }

  async #exportAll() {
    exportConversations(await this.#store.all());
  }

  #openNew() {
    this.#conversation = newConversation(keptOptions());
    history.pushState(null, '', '#');
    this.#show();
    this.#composer.focus();
  }

  async #openAddress() {
    const id = location.hash.slice(1);
    if (id === this.#conversation.id && this.#conversation.messages.length) return;
    const found = id ? await this.#find(id) : null;
    if (location.hash.slice(1) !== id) return;
    if (id && !found) history.replaceState(null, '', '#');
    this.#conversation = found ?? newConversation(keptOptions());
    this.#show();
    this.#composer.focus();
  }

  #show() {
    this.#transcript.show(this.#conversation, this.#answer);
    this.#showAround();
  }

  /** Shows what stands around the messages. */
  #showAround() {
    const conversation = this.#conversation;
    const { options } = conversation;
    const { models } = this.#server;
    const known = models.some(({ id }) => id === options.model);
    if (models.length && !known) options.model = models[0].id;
    const title = titleOf(conversation);
    find('title', HTMLElement).textContent = title;
    document.title = conversation.messages.length ? `${title} · gpt-oss` : 'gpt-oss';
    this.#composer.showOptions(models, options);
    const model = models.find(({ id }) => id === options.model);
    this.#composer.showContext(contextUsed(conversation), model?.context_length);
    this.#composer.setRunning(this.#answer !== null);
    return this.#sidebar.mark(conversation.id, this.#answers.keys());
  }

  #serverChanged() {
    this.#composer.setReady(this.#server.ready);
    this.#showAround();
    if (!this.#server.ready || !this.#retryWithKey) return;
    this.#retryWithKey = false;
    const last = this.#conversation.messages.at(-1);
    if (last?.failure) this.#replace(last, []);
  }

  /** @param {string} content */
  #send(content) {
    dismiss('replaced');
    this.#conversation.messages.push({ role: 'user', content });
    this.#ask();
  }

  /** @param {Map<string, string>} results */
  #answerCalls(results) {
    const { messages } = this.#conversation;
    for (const { id, name } of openCalls(messages)) {
      messages.push({ role: 'tool', callId: id, name, content: results.get(id) ?? '' });
    }
    this.#ask();
  }

  /** Asks for an answer to what the conversation holds. */
  async #ask() {
    const conversation = this.#conversation;
    const answer = new Answer(conversation, this.#server.toolsFor(conversation.options));
    this.#answers.set(conversation.id, answer);
    const shown = () => this.#conversation === conversation;
    const saving = setInterval(() => this.#save(conversation), SAVE_EVERY);
    answer.onGrow = () => shown() && this.#transcript.grow();
    const running = answer.run();
    this.#show();
    this.#composer.focus();
    await this.#save(conversation);
    this.#showAround();
    const error = await running;
    clearInterval(saving);
    if (this.#answers.get(conversation.id) !== answer) return; // replaced, or deleted
    this.#answers.delete(conversation.id);
    await this.#save(conversation);
    if (shown()) this.#transcript.setAnswer(null);
    this.#showAround();
    this.#tellEnd(answer, error);
  }

  /**
   * @param {Answer} answer
   * @param {unknown} error
   */
  #tellEnd({ message }, error) {
    const calls = message.calls?.map(({ name }) => name).join(', ');
    const wants = calls ? `The model calls ${calls} and waits for the result.` : '';
    announce(message.failure?.text ?? (wants || `gpt-oss: ${message.content}`));
    const status = error instanceof ApiError ? error.status : 0;
    this.#retryWithKey = status === 401;
    if (status === 401) this.#askKey();
    // A server that has gone, or loads its model again, is watched until it is back.
    if (error instanceof ConnectionLost || status === 503) this.#server.watch();
  }

  /**
   * Goes on from an earlier place; what stood there can be brought back.
   *
   * @param {Message} message replaced with what follows it
   * @param {Message[]} replacements
   */
  #replace(message, replacements) {
    const index = this.#conversation.messages.indexOf(message);
    if (index < 0) return;
    this.#answer?.stop();
    const conversation = this.#conversation;
    const before = conversation.messages;
    conversation.messages = [...before.slice(0, index), ...replacements];
    const lost = before.slice(index).filter(({ content, calls }) => content || calls);
    if (lost.length) {
      const what = lost.length === 1 ? 'One message was' : `${lost.length} messages were`;
      const act = () => this.#bringBack(conversation, before);
      note('replaced', `${what} replaced.`, { label: 'Undo', act });
    }
    if (!openCalls(conversation.messages).length) this.#ask();
    else this.#bringBack(conversation, conversation.messages);
  }

  /**
   * @param {Conversation} conversation
   * @param {Message[]} messages
   */
  async #bringBack(conversation, messages) {
    this.#answers.get(conversation.id)?.stop();
    conversation.messages = messages;
    await this.#save(conversation);
    if (this.#conversation === conversation) this.#show();
  }

  /** @param {Partial<Options>} change */
  #choose(change) {
    const conversation = this.#conversation;
    Object.assign(conversation.options, change);
    // Model, effort and tools are what a person wants next time as well.
    const { model, effort, served } = conversation.options;
    setPreference('options', { ...keptOptions(), model, effort, served });
    if (conversation.messages.length) this.#save(conversation);
    this.#showAround();
  }

  #keepOptions() {
    setPreference('options', this.#conversation.options);
    note('kept', 'New conversations begin with these settings.');
    this.#settings.close();
  }

  /** @param {Conversation} conversation */
  async #save(conversation) {
    const { id } = conversation;
    const copied = await this.#store.put(conversation);
    if (copied) {
      const answer = this.#answers.get(id);
      if (answer) this.#answers.set(conversation.id, answer);
      this.#answers.delete(id);
      note('copied', 'Another tab changed this conversation, so this tab goes on in a copy.');
    }
    if (this.#conversation === conversation && location.hash.slice(1) !== conversation.id) {
      history.replaceState(null, '', `#${conversation.id}`);
    }
  }

  #saveRunning() {
    for (const { conversation } of this.#answers.values()) this.#store.put(conversation);
  }

  /**
   * @param {string} id
   * @param {string} title
   */
  async #rename(id, title) {
    const conversation = await this.#find(id);
    if (!conversation) return;
    conversation.title = title;
    await this.#save(conversation);
    this.#showAround();
  }

  /** @param {string} id */
  async #remove(id) {
    const conversation = await this.#find(id);
    this.#answers.get(id)?.stop();
    this.#answers.delete(id);
    await this.#store.remove(id);
    if (this.#conversation.id === id) this.#openNew();
    this.#showAround();
    if (!conversation) return;
    const act = async () => {
      await this.#store.put(conversation);
      location.hash = conversation.id;
      this.#showAround();
    };
    note('removed', `“${titleOf(conversation)}” was deleted.`, { label: 'Undo', act });
  }

  /** @param {string} id of a conversation that another tab has changed */
  async #changedElsewhere(id) {
    this.#sidebar.draw();
    const stored = await this.#store.get(id);
    if (!stored || this.#conversation.id !== id || this.#answer) return;
    this.#conversation = stored;
    this.#show();
  }

  /** @param {File} file */
  async #import(file) {
    try {
      const { count, id } = await importConversations(this.#store, file);
      const what = count === 1 ? 'One conversation' : `${count} conversations`;
      note('import', `${what} imported from ${file.name}.`);
      if (id) location.hash = id;
    } catch (error) {
      note('import', error instanceof Error ? error.message : String(error));
    }
    this.#showAround();
  }

  #askKey() {
    const act = () => this.#settings.askKey();
    note('key', 'This server asks for an API key.', { label: 'Enter the key', act });
    this.#settings.askKey();
  }

  #keyChanged() {
    dismiss('key');
    this.#settings.close();
    this.#server.watch();
  }
}

new Page().start();
