/**
 * The messages of the conversation shown: drawn at most once a frame, the newest ones first.
 *
 * The page follows the end while the person is there, and stays where the person scrolled to.
 */

import { find, icon } from './dom.js';
import { openCalls } from './conversation.js';
import { MessageView } from './message.js';

/** @import { Answer } from './answer.js' */
/** @import { Conversation, Message } from './conversation.js' */
/** @import { Actions } from './message.js' */

const BATCH = 40; // messages built at a time
const NEAR = 60; // pixels from the end that count as the end
const PAUSE = 4; // a frame's work is followed by this many times its length without

export class Transcript {
  #scroller = find('transcript', HTMLElement);
  #list = find('messages', HTMLElement);
  #earlier = find('earlier', HTMLElement);
  #toEnd = find('to-end', HTMLButtonElement);
  /** @type {MessageView[]} of the last messages, in order */
  #views = [];
  /** @type {Map<Message, MessageView>} that stay as they are, folds and all */
  #known = new Map();
  /** @type {Message[]} */
  #messages = [];
  /** @type {Answer | null} */
  #answer = null;
  #follows = true;
  #scheduled = false;
  #stale = false; // grown since it was drawn

  /** @param {Actions} actions */
  constructor(actions) {
    this.actions = actions;
    this.#toEnd.append(icon('down'));
    this.#toEnd.onclick = () => this.toEnd();
    this.#scroller.addEventListener('scroll', () => this.#look(), { passive: true });
    // What grows without a frame of ours (a formula, an opened fold) moves the end as well.
    new ResizeObserver(() => this.#keepAtEnd()).observe(this.#list);
    this.#earlier.onclick = () => this.#showEarlier();
  }

  /**
   * Shows a conversation from its end.
   *
   * @param {Conversation} conversation
   * @param {Answer | null} answer that runs in it
   */
  show(conversation, answer) {
    this.#messages = conversation.messages;
    this.#answer = answer;
    this.#known = new Map(this.#views.map((view) => [view.message, view]));
    this.#views = [];
    this.#list.replaceChildren();
    this.#add(Math.max(0, this.#messages.length - BATCH), this.#messages.length);
    find('welcome', HTMLElement).hidden = this.#messages.length > 0;
    this.toEnd();
  }

  /** The answer has grown: draws it in the next frame, later where a frame's work takes long. */
  grow() {
    this.#stale = true;
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      const began = performance.now();
      this.#stale = false;
      if (this.#answer) this.#drawLast();
      setTimeout(() => {
        this.#scheduled = false;
        if (this.#stale) this.grow();
      }, (performance.now() - began) * PAUSE);
    });
  }

  /** @param {Answer | null} answer that runs now */
  setAnswer(answer) {
    this.#answer = answer;
    this.#drawLast();
  }

  toEnd() {
    this.#follows = true;
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#look();
  }

  /** Opens the person's last message to be written again. */
  editLast() {
    this.#views.findLast(({ message }) => message.role === 'user')?.edit();
  }

  #drawLast() {
    const message = this.#messages.at(-1);
    if (!message) return;
    if (this.#views.at(-1)?.message !== message) {
      this.#add(this.#messages.length - 1, this.#messages.length);
    }
    this.#views.at(-1)?.update({
      answer: this.#answer?.message === message ? this.#answer : null,
      open: this.#answer ? [] : openCalls(this.#messages),
    });
    this.#keepAtEnd();
  }

  /**
   * Builds the views of messages from `first` on and puts them before those that are there, or after
   * them when they are newer.
   *
   * @param {number} first
   * @param {number} end not included
   */
  #add(first, end) {
    const open = this.#answer ? [] : openCalls(this.#messages);
    const holder = this.#messages.findLast(({ role }) => role === 'assistant');
    const views = this.#messages.slice(first, end).map((message) => {
      const view = this.#known.get(message) ?? new MessageView(message, this.actions);
      const answer = this.#answer?.message === message ? this.#answer : null;
      view.update({ answer, open: message === holder ? open : [] });
      return view;
    });
    const newer = end === this.#messages.length;
    if (newer) this.#views.push(...views);
    else this.#views.unshift(...views);
    const elements = views.map(({ element }) => element);
    if (newer) this.#list.append(...elements);
    else this.#list.prepend(...elements);
    this.#earlier.hidden = this.#views.length >= this.#messages.length;
  }

  #showEarlier() {
    const end = this.#messages.length - this.#views.length;
    const fromEnd = this.#scroller.scrollHeight - this.#scroller.scrollTop;
    const [first] = this.#views;
    this.#follows = false;
    this.#add(Math.max(0, end - BATCH), end);
    this.#scroller.scrollTop = this.#scroller.scrollHeight - fromEnd;
    first?.element.querySelector('button')?.focus({ preventScroll: true });
  }

  #look() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    this.#follows = scrollHeight - scrollTop - clientHeight < NEAR;
    this.#toEnd.hidden = this.#follows;
  }

  #keepAtEnd() {
    if (this.#follows) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#look();
  }
}
