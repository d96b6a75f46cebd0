/**
 * The view of a message: text, reasoning, tool calls, what went wrong, and what can be done with it.
 */

import { copyButton, icon, iconButton, make } from './dom.js';
import { codeBlock, finishCode } from './code.js';
import { Markdown } from './markdown.js';
import { fileList, RunView, sourceList } from './run-view.js';

/** @import { Answer } from './answer.js' */
/** @import { Call, Message } from './conversation.js' */
/** @import { FileMade } from './responses.js' */

/**
 * @typedef {object} Actions
 * @property {(message: Message) => void} retry
 * @property {(message: Message, text: string) => void} edit
 * @property {(results: Map<string, string>) => void} answerCalls
 * @property {(message: Message, id: string, mayRun: boolean) => void} approve a run that waits
 * @property {(file: FileMade) => void} save
 *
 * @typedef {object} Context
 * @property {Answer | null} answer that runs in this message
 * @property {Call[]} open calls of this message that want a result
 */

const SPEAKERS = { user: 'You', assistant: 'gpt-oss', tool: 'Tool' };
const LONG = { characters: 1800, lines: 24 };
const HEADINGS = {
  api: 'The server refused',
  connection: 'No connection',
  cut: 'Cut off',
  stopped: '',
};

const whole = new Intl.NumberFormat('en');

export class MessageView {
  #speaker = make('h2', { className: 'speaker' });
  #thoughts = make('p', { className: 'thoughts' });
  #summary = make('summary');
  #details = make('details', { hidden: true }, this.#summary, this.#thoughts);
  #wait = make('p', { className: 'wait', hidden: true });
  #content = make('div', { className: 'content' });
  #calls = make('div', { className: 'calls' });
  #runs = make('div', { className: 'runs' });
  #yields = make('div', { className: 'yields' }); // sources and files
  /** @type {RunView[]} */
  #runViews = [];
  #failure = make('div', { className: 'failure', hidden: true });
  #foot = make('p', { className: 'foot' });
  #thoughtLength = 0;
  #markdown = new Markdown(this.#content);

  /**
   * @param {Message} message
   * @param {Actions} actions
   */
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.#speaker.textContent = SPEAKERS[message.role];
    const answers = message.role === 'assistant';
    const before = answers ? [this.#details, this.#runs, this.#wait] : [];
    const after = answers ? [this.#yields, this.#calls, this.#failure] : [];
    const parts = [...before, this.#content, ...after, this.#foot];
    const body = make('div', { className: 'body' }, ...parts);
    this.element = make('article', { className: `message ${message.role}` }, this.#speaker, body);
    if (!answers) this.#showText();
  }

  /** @param {Context} context */
  update({ answer, open }) {
    if (this.message.role !== 'assistant') return;
    const { message } = this;
    this.element.classList.toggle('running', Boolean(answer));
    this.element.setAttribute('aria-busy', String(Boolean(answer)));
    this.#showReasoning(answer);
    this.#showRuns(!answer);
    this.#showWait(answer);
    if (answer) this.#markdown.update(message.content);
    else this.#markdown.finish(message.content);
    this.#calls.replaceChildren(
      ...(message.calls ?? []).filter(Boolean).map((call) => callView(call, !answer)),
    );
    if (answer) return;
    if (open.length) this.#calls.append(this.#resultForm(open));
    this.#showFailure();
    this.#showFoot();
  }

  /** Lets the person write the message again. */
  edit() {
    const { message } = this;
    const area = make('textarea', { value: message.content, 'aria-label': 'Edit the message' });
    const done = () => {
      form.replaceWith(this.#content);
      this.#foot.hidden = false;
      this.#foot.querySelector('button')?.focus();
    };
    const save = () => this.actions.edit(message, area.value);
    const form = make(
      'form',
      {
        className: 'edit',
        onsubmit: (/** @type {Event} */ event) => {
          event.preventDefault();
          if (area.value.trim()) save();
        },
        onkeydown: (/** @type {KeyboardEvent} */ event) => {
          if (event.key === 'Escape') {
            event.preventDefault();
            done();
          }
          if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit();
        },
      },
      area,
      make(
        'p',
        { className: 'row' },
        make('button', { type: 'submit', className: 'primary' }, 'Send again'),
        make('button', { type: 'button', onclick: done }, 'Cancel'),
      ),
    );
    this.#content.replaceWith(form);
    this.#foot.hidden = true;
    area.rows = Math.min(20, message.content.split('\n').length + 1);
    area.focus();
  }

  /** What a person or a tool wrote: text as it is, folded where it is long. */
  #showText() {
    const { message } = this;
    if (message.role === 'tool') {
      this.#speaker.textContent = 'Result';
      this.#content.append(make('p', { className: 'tool-name' }, message.name ?? ''));
    }
    const text = make('p', { className: 'plain' }, message.content);
    this.#content.append(text);
    const lines = message.content.split('\n').length;
    if (message.content.length > LONG.characters || lines > LONG.lines) {
      text.classList.add('folded');
      const toggle = make('button', { type: 'button', className: 'quiet' }, 'Show all');
      toggle.onclick = () => {
        toggle.textContent = text.classList.toggle('folded') ? 'Show all' : 'Show less';
      };
      this.#content.append(toggle);
    }
    this.#foot.append(
      make('span', { className: 'facts' }),
      iconButton('pencil', 'Edit this message', () => this.edit()),
      copyButton('Copy this message', () => message.content),
    );
  }

  /** @param {Answer | null} answer */
  #showReasoning(answer) {
    const { reasoning = '', thoughtMs = 0, usage } = this.message;
    this.#details.hidden = !reasoning;
    if (!reasoning) return;
    if (reasoning.length !== this.#thoughtLength) {
      this.#thoughts.append(reasoning.slice(this.#thoughtLength));
      this.#thoughtLength = reasoning.length;
    }
    const tokens = usage?.completion_tokens_details?.reasoning_tokens;
    const count = tokens ? ` · ${whole.format(tokens)} tokens` : '';
    const lasted = seconds(thoughtMs);
    const label = answer?.thinks ? `Thinking… ${lasted}` : `Thought for ${lasted}${count}`;
    if (this.#summary.textContent !== label) this.#summary.textContent = label;
  }

  /** @param {boolean} ended */
  #showRuns(ended) {
    const { runs = [], sources = [], files = [] } = this.message;
    runs.forEach((run, at) => {
      if (!this.#runViews[at]) {
        const answer = (/** @type {string} */ id, /** @type {boolean} */ mayRun) =>
          this.actions.approve(this.message, id, mayRun);
        this.#runViews[at] = new RunView(answer);
        this.#runs.append(this.#runViews[at].element);
      }
      this.#runViews[at].update(run, ended);
    });
    if (!ended) return;
    this.#yields.replaceChildren(
      ...(sources.length ? [make('p', {}, 'Sources'), sourceList(sources)] : []),
      ...(files.length ? [fileList(files, this.actions.save)] : []),
    );
  }

  /** @param {Answer | null} answer */
  #showWait(answer) {
    const { content, reasoning, calls, runs } = this.message;
    const waits = answer !== null && !content && !reasoning && !calls && !runs;
    this.#wait.hidden = !waits;
    if (!waits) return this.#wait.replaceChildren();
    const { progress } = answer;
    if (!progress) return this.#wait.replaceChildren('Waiting for the first word');
    if (progress.kind === 'held') {
      const count = whole.format(progress.tokens);
      return this.#wait.replaceChildren(`Writing, ${count} tokens so far, to be judged first`);
    }
    const { done, total } = progress;
    const bar = make('progress', { value: done, max: total, 'aria-label': 'Reading the prompt' });
    const label = `Reading ${whole.format(done)} of ${whole.format(total)} tokens`;
    this.#wait.replaceChildren(label, bar);
  }

  #showFailure() {
    const { failure, finish } = this.message;
    const limit = 'The answer reached its limit of tokens and was cut off there.';
    const text = failure?.text ?? (finish === 'length' ? limit : '');
    this.#failure.hidden = !text;
    if (!text) return;
    const heading = failure ? HEADINGS[failure.kind] : '';
    this.#failure.classList.toggle('mild', !heading);
    const again = () => this.actions.retry(this.message);
    this.#failure.replaceChildren(
      make('p', {}, heading ? make('strong', {}, `${heading}. `) : '', text),
      make('button', { type: 'button', onclick: again }, 'Try again'),
    );
  }

  #showFoot() {
    const { message, actions } = this;
    const retry = iconButton('retry', 'Answer again', () => actions.retry(message));
    const buttons = this.#failure.hidden ? [retry] : []; // a failure has its own
    if (message.content) buttons.push(copyButton('Copy this answer', () => message.content));
    this.#foot.replaceChildren(make('span', { className: 'facts' }, facts(message)), ...buttons);
  }

  /**
   * @param {Call[]} open
   * @returns {HTMLFormElement}
   */
  #resultForm(open) {
    const fields = open.map(({ id, name }) => ({
      id,
      area: make('textarea', { rows: 2, required: true, 'aria-label': `Result of ${name}` }),
      name,
    }));
    const submit = (/** @type {Event} */ event) => {
      event.preventDefault();
      this.actions.answerCalls(new Map(fields.map(({ id, area }) => [id, area.value])));
    };
    return make(
      'form',
      { className: 'results', onsubmit: submit },
      ...fields.map(({ name, area }) => make('label', {}, `Result of ${name}`, area)),
      make('p', {}, make('button', { type: 'submit', className: 'primary' }, 'Go on')),
    );
  }
}

/**
 * @param {Call} call
 * @param {boolean} complete
 * @returns {HTMLElement}
 */
function callView(call, complete) {
  let text = call.arguments;
  try {
    if (complete) text = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    // What is no JSON is shown as the model wrote it.
  }
  const heading = document.createDocumentFragment();
  heading.append(icon('tool'), call.name);
  const view = codeBlock(text, 'json', heading);
  if (complete) finishCode(view);
  return view;
}

/**
 * @param {Message} message
 * @returns {string} tokens, speed and how much of the prompt was read anew
 */
function facts({ usage, timings, model }) {
  const said = model && usage ? [model] : [];
  if (usage) said.push(`${whole.format(usage.completion_tokens)} tokens`);
  if (timings?.predicted_per_second) {
    said.push(`${timings.predicted_per_second.toFixed(1)} tokens/s`);
  }
  if (timings?.prompt_ms) said.push(`first after ${seconds(timings.prompt_ms)}`);
  return said.join(' · ');
}

/** @param {number} milliseconds */
function seconds(milliseconds) {
  const value = milliseconds / 1000;
  if (value < 0.05) return 'a moment';
  if (value >= 60) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return value < 10 ? `${value.toFixed(1)} s` : `${Math.round(value)} s`;
}
