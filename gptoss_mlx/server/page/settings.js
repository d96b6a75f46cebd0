/**
 * The settings: a conversation's options, the page's colours, the file of all conversations, the key.
 */

import { setKey } from './api.js';
import { parseTools } from './conversation.js';
import { find, icon, iconButton } from './dom.js';
import { preference, setPreference } from './store.js';

/** @import { Options } from './conversation.js' */

const EXAMPLE = [
  {
    type: 'function',
    function: {
      name: 'get_weather',
      description: 'The weather in a city',
      parameters: {
        type: 'object',
        properties: { city: { type: 'string' } },
        required: ['city'],
      },
    },
  },
];

/**
 * @typedef {object} Handlers
 * @property {() => Options} options of the conversation shown
 * @property {(change: Partial<Options>) => void} choose
 * @property {() => void} keep the options for new conversations
 * @property {() => void} exportAll
 * @property {(file: File) => void} importFile
 * @property {() => void} keyChanged
 */

export class Settings {
  #dialog = find('settings', HTMLDialogElement);
  #system = find('system', HTMLTextAreaElement);
  #temperature = find('temperature', HTMLInputElement);
  #limit = find('limit', HTMLInputElement);
  #tools = find('tool-list', HTMLTextAreaElement);

  /** @param {Handlers} handlers */
  constructor(handlers) {
    this.handlers = handlers;
    find('tools', HTMLElement).append(iconButton('sliders', 'Settings', () => this.open()));
    const close = find('close-settings', HTMLButtonElement);
    close.append(icon('close'));
    close.onclick = () => this.#dialog.close();
    this.#dialog.onclick = ({ target }) => {
      if (target === this.#dialog) this.#dialog.close();
    };
    this.#system.onchange = () => handlers.choose({ system: this.#system.value });
    this.#temperature.onchange = () => this.#chooseNumber('temperature', this.#temperature);
    this.#limit.onchange = () => this.#chooseNumber('limit', this.#limit);
    this.#tools.oninput = () => this.#checkTools();
    find('tool-example', HTMLButtonElement).onclick = () => {
      this.#tools.value = JSON.stringify(EXAMPLE, null, 2);
      this.#checkTools();
    };
    find('keep-options', HTMLButtonElement).onclick = handlers.keep;
    find('export-all', HTMLButtonElement).onclick = handlers.exportAll;
    const file = find('import-file', HTMLInputElement);
    find('import', HTMLButtonElement).onclick = () => file.click();
    file.onchange = () => {
      if (file.files?.[0]) handlers.importFile(file.files[0]);
      file.value = '';
      this.#dialog.close();
    };
    find('change-key', HTMLButtonElement).onclick = () => this.askKey();
    this.#wireTheme();
    this.#wireKey();
  }

  open() {
    const { system, temperature, limit, tools } = this.handlers.options();
    this.#system.value = system;
    this.#temperature.value = temperature === null ? '' : String(temperature);
    this.#limit.value = limit === null ? '' : String(limit);
    this.#tools.value = tools;
    this.#checkTools();
    this.#dialog.showModal();
  }

  close() {
    this.#dialog.close();
  }

  askKey() {
    const dialog = find('key-dialog', HTMLDialogElement);
    if (!dialog.open) dialog.showModal();
  }

  /**
   * @param {'temperature' | 'limit'} name
   * @param {HTMLInputElement} input
   */
  #chooseNumber(name, input) {
    if (input.checkValidity()) {
      this.handlers.choose({ [name]: input.value === '' ? null : input.valueAsNumber });
    } else {
      input.reportValidity();
    }
  }

  /** Takes the tools when they can be read, and says what is wrong when they cannot. */
  #checkTools() {
    let wrong = '';
    try {
      parseTools(this.#tools.value);
      if (this.#tools.value !== this.handlers.options().tools) {
        this.handlers.choose({ tools: this.#tools.value });
      }
    } catch (error) {
      wrong = error instanceof Error ? error.message : String(error);
    }
    find('tool-error', HTMLElement).textContent = wrong;
    this.#tools.setAttribute('aria-invalid', String(Boolean(wrong)));
  }

  #wireTheme() {
    const chosen = preference('theme', '');
    for (const input of find('theme', HTMLElement).querySelectorAll('input')) {
      input.checked = input.value === chosen;
      input.onchange = () => {
        setPreference('theme', input.value);
        const { dataset } = document.documentElement;
        if (input.value) dataset.theme = input.value;
        else delete dataset.theme;
      };
    }
  }

  #wireKey() {
    const dialog = find('key-dialog', HTMLDialogElement);
    const input = find('key', HTMLInputElement);
    find('cancel-key', HTMLButtonElement).onclick = () => dialog.close();
    find('key-form', HTMLFormElement).onsubmit = (event) => {
      event.preventDefault();
      setKey(input.value.trim());
      input.value = '';
      dialog.close();
      this.handlers.keyChanged();
    };
  }
}
