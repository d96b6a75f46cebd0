/**
 * A running answer: one request, and the message that grows from its stream.
 *
 * It goes on when another conversation is shown, and keeps what came before it failed.
 */

import { aborted, ApiError, chat, ConnectionLost } from './api.js';
import { grow, requestOf } from './conversation.js';

/** @import { Conversation, Failure, Message } from './conversation.js' */

export class Answer {
  #controller = new AbortController();
  #thoughtFrom = 0;

  /** @type {{done: number, total: number} | null} tokens of the prompt, while it is read */
  progress = null;
  onGrow = () => {};

  /** @param {Conversation} conversation to which the answer is added */
  constructor(conversation) {
    this.conversation = conversation;
    /** @type {Message} */
    this.message = { role: 'assistant', content: '', model: conversation.options.model };
  }

  /** @returns {Promise<unknown>} when the answer has ended: what failed, or null */
  async run() {
    const { conversation, message } = this;
    let failed = null;
    conversation.messages.push(message);
    try {
      for await (const event of chat(requestOf(conversation), this.#controller.signal)) {
        this.progress = event.kind === 'prefill' ? event : null;
        if (event.kind === 'chunk') grow(message, event.chunk);
        this.#time();
        this.onGrow();
      }
      if (isEmpty(message)) throw new ApiError('The model ended without an answer.');
    } catch (error) {
      failed = error;
      message.failure = failureOf(error);
    }
    this.progress = null;
    if (message.calls) message.calls = message.calls.filter(Boolean);
    return failed;
  }

  stop() {
    this.#controller.abort();
  }

  /** @returns {boolean} whether reasoning came and nothing after it yet */
  get thinks() {
    const { reasoning, content, calls } = this.message;
    return Boolean(reasoning) && !content && !calls;
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
