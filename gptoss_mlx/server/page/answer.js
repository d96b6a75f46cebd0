/**
 * A running answer: one request, and the message that grows from its stream.
 *
 * It goes on when another conversation is shown, and keeps what came before it failed.
 */

import { aborted, ApiError, chat, ConnectionLost, respond } from './api.js';
import { grow, requestOf } from './conversation.js';
import { readPicture } from './pictures.js';
import { Growth, responseRequest } from './responses.js';

/** @import { Conversation, Failure, Message } from './conversation.js' */

export class Answer {
  #controller = new AbortController();
  #thoughtFrom = 0;

  /** @type {{done: number, total: number} | null} tokens of the prompt, while it is read */
  progress = null;
  onGrow = () => {};

  /** @type {Map<object, Promise<void>>} pictures that are read, by their figures */
  #pictures = new Map();

  /**
   * @param {Conversation} conversation to which the answer is added
   * @param {string[]} served names of the server's tools that may be used
   */
  constructor(conversation, served = []) {
    this.conversation = conversation;
    this.served = served;
    /** @type {Message} */
    this.message = { role: 'assistant', content: '', model: conversation.options.model };
  }

  /** @returns {Promise<unknown>} when the answer has ended: what failed, or null */
  async run() {
    const { conversation, message } = this;
    let failed = null;
    conversation.messages.push(message);
    try {
      if (this.served.length) await this.#respond();
      else await this.#chat();
      await Promise.all(this.#pictures.values());
      if (isEmpty(message)) throw new ApiError('The model ended without an answer.');
    } catch (error) {
      failed = error;
      message.failure = failureOf(error);
    }
    this.progress = null;
    if (message.calls) message.calls = message.calls.filter(Boolean);
    return failed;
  }

  async #chat() {
    const { conversation, message } = this;
    for await (const event of chat(requestOf(conversation), this.#controller.signal)) {
      this.progress = event.kind === 'prefill' || event.kind === 'held' ? event : null;
      if (event.kind === 'chunk') grow(message, event.chunk);
      this.#time();
      this.onGrow();
    }
  }

  /** By the API that runs tools; in a new container where the conversation's is gone. */
  async #respond() {
    const { conversation, served } = this;
    try {
      await this.#grow(responseRequest(conversation, served));
    } catch (error) {
      if (!(error instanceof ApiError) || error.code !== 'container_expired') throw error;
      for (const message of conversation.messages) delete message.container;
      await this.#grow(responseRequest(conversation, served));
    }
  }

  /** @param {object} request */
  async #grow(request) {
    const { message } = this;
    const growth = new Growth(message);
    for await (const event of respond(request, this.#controller.signal)) {
      this.progress = event.kind === 'prefill' || event.kind === 'held' ? event : null;
      if (event.kind === 'event') growth.take(event.event);
      for (const figure of message.runs?.flatMap(({ figures }) => figures ?? []) ?? []) {
        if (this.#pictures.has(figure)) continue;
        this.#pictures.set(figure, readPicture(figure).then(() => this.onGrow()));
      }
      this.#time();
      this.onGrow();
    }
  }

  stop() {
    this.#controller.abort();
  }

  /** @returns {boolean} whether reasoning came and nothing after it yet */
  get thinks() {
    const { reasoning, content, calls, runs } = this.message;
    return Boolean(reasoning) && !content && !calls && !runs;
  }

  #time() {
    const now = performance.now();
    if (this.message.reasoning && !this.#thoughtFrom) this.#thoughtFrom = now;
    if (this.thinks) this.message.thoughtMs = now - this.#thoughtFrom;
  }
}

/** @param {Message} message */
function isEmpty({ content, calls, finish }) {
  return !content && !calls?.length && finish !== 'length';
}

/**
 * @param {unknown} error
 * @returns {Failure}
 */
function failureOf(error) {
  if (aborted(error)) return { kind: 'stopped', text: 'Stopped.' };
  if (error instanceof ConnectionLost) {
    return { kind: error.begun ? 'cut' : 'connection', text: error.message };
  }
  const text = error instanceof Error ? error.message : String(error);
  return { kind: 'api', text };
}
