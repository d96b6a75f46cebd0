/**
 * The composer: the message that is written, effort and model, and the button that sends or stops.
 */

import { find, icon, make } from './dom.js';

/** @import { Model } from './api.js' */
/** @import { Options } from './conversation.js' */

const HIGHEST = 0.4; // of the window
const touch = matchMedia('(pointer: coarse)');
const whole = new Intl.NumberFormat('en');

/**
 * @typedef {object} Handlers
 * @property {(text: string) => void} send
 * @property {() => void} stop
 * @property {() => void} editLast
 * @property {(change: Partial<Options>) => void} choose
 */

export class Composer {
  #form = find('composer', HTMLFormElement);
  #prompt = find('prompt', HTMLTextAreaElement);
  #model = find('model', HTMLSelectElement);
  #effort = find('effort', HTMLFieldSetElement);
  #served = find('served', HTMLFieldSetElement);
  #send = find('send', HTMLButtonElement);
  #running = false;
  #ready = false;

  /** @param {Handlers} handlers */
  constructor(handlers) {
    this.handlers = handlers;
    this.#form.onsubmit = (event) => {
      event.preventDefault();
      if (this.#running) handlers.stop();
      else this.#submit();
    };
    find('skip', HTMLAnchorElement).onclick = (event) => {
      event.preventDefault(); // the address names a conversation
      this.#prompt.focus();
    };
    this.#prompt.oninput = () => this.#fit();
    this.#prompt.onkeydown = (event) => this.#key(event);
    this.#model.onchange = () => handlers.choose({ model: this.#model.value });
    this.#effort.onchange = ({ target }) => {
      if (target instanceof HTMLInputElement) handlers.choose({ effort: target.value });
    };
    this.#served.onchange = () => {
      const chosen = [...this.#served.querySelectorAll('input')].filter(({ checked }) => checked);
      handlers.choose({ served: chosen.map(({ value }) => value) });
    };
    this.#showButton();
  }

  /** Lets the person write, unless that would raise a keyboard over the page. */
  focus() {
    if (!touch.matches) this.#prompt.focus();
  }

  /** @param {boolean} running whether an answer runs here */
  setRunning(running) {
    this.#running = running;
    this.#showButton();
  }

  /** @param {boolean} ready whether the server can answer */
  setReady(ready) {
    this.#ready = ready;
    this.#showButton();
  }

  /**
   * @param {Model[]} models
   * @param {Options} options
   */
  showOptions(models, options) {
    const ids = models.map(({ id }) => id);
    if (options.model && !ids.includes(options.model)) ids.push(options.model);
    this.#model.replaceChildren(...ids.map((id) => new Option(id, id)));
    this.#model.value = options.model;
    this.#model.hidden = ids.length === 0;
    for (const input of this.#effort.querySelectorAll('input')) {
      input.checked = input.value === options.effort;
    }
    const tools = models.find(({ id }) => id === options.model)?.server_tools ?? {};
    this.#served.hidden = !Object.keys(tools).length;
    this.#addServers(Object.keys(tools));
    for (const input of this.#served.querySelectorAll('input')) {
      input.checked = options.served.includes(input.value);
      if (input.parentElement) input.parentElement.hidden = !(input.value in tools);
    }
  }

  /**
   * Adds a box for each server of tools that has none.
   *
   * @param {string[]} names
   */
  #addServers(names) {
    const known = [...this.#served.querySelectorAll('input')].map(({ value }) => value);
    for (const name of names.filter((one) => !known.includes(one))) {
      const input = make('input', { type: 'checkbox', name: 'served', value: name });
      const title = `The model may call the tools of ${name}`;
      this.#served.append(make('label', { title }, input, name));
    }
  }

  /**
   * @param {number} used tokens
   * @param {number | undefined} length tokens that the model's context has
   */
  showContext(used, length) {
    find('context', HTMLElement).hidden = !used;
    const meter = find('context-meter', HTMLMeterElement);
    meter.hidden = !length;
    if (length) Object.assign(meter, { max: length, high: length * 0.8, value: used });
    find('context-text', HTMLElement).textContent = length
      ? `${whole.format(used)} of ${whole.format(length)} tokens`
      : `${whole.format(used)} tokens`;
  }

  #submit() {
    const text = this.#prompt.value;
    if (!text.trim() || !this.#ready) return;
    this.#prompt.value = '';
    this.#fit();
    this.handlers.send(text);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.key === 'ArrowUp' && !this.#prompt.value && !this.#running) {
      event.preventDefault();
      this.handlers.editLast();
    }
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing || touch.matches) return;
    event.preventDefault();
    if (!this.#running) this.#submit();
  }

  #fit() {
    this.#prompt.style.height = 'auto';
    const height = Math.min(this.#prompt.scrollHeight, innerHeight * HIGHEST);
    this.#prompt.style.height = `${height}px`;
    this.#showButton();
  }

  #showButton() {
    const name = this.#running ? 'stop' : 'send';
    if (!this.#send.querySelector(`.icon-${name}`)) this.#send.replaceChildren(icon(name));
    const waits = this.#ready ? 'Send' : 'Send, once the model is ready';
    const label = this.#running ? 'Stop the answer' : waits;
    this.#send.setAttribute('aria-label', label);
    this.#send.title = label;
    this.#send.disabled = !this.#running && (!this.#ready || !this.#prompt.value.trim());
  }
}
