/**
 * Answers of a server that runs tools: the request for one, and how it grows from its events.
 *
 * Everything is plain data, as in a conversation.
 */

import { completeCalls, parseTools, passedOver } from './conversation.js';

/** @import { Call, Conversation, Message } from './conversation.js' */

/**
 * @typedef {object} Figure a picture that a run has made
 * @property {string} container
 * @property {string} id of the file
 * @property {string} [data] the picture as a data URL, once it was read
 *
 * @typedef {object} FileMade
 * @property {string} container
 * @property {string} id
 * @property {string} name its path in python's folder
 *
 * @typedef {object} Source what an answer cites
 * @property {string} title
 * @property {string} [url] of a page of the web
 *
 * @typedef {object} Run a call that the server runs
 * @property {string} id
 * @property {'python' | 'browser' | 'mcp'} kind
 * @property {string} text the code, what is done in the browser, or the arguments
 * @property {string} status
 * @property {string} [server] the label of the one whose tool is called
 * @property {string} [name] the tool's
 * @property {string} [result]
 * @property {Figure[]} [figures]
 * @property {Source[]} [found] by a search
 * @property {boolean} [waits] for the person to say whether it may run
 */

const INCLUDE = [
  'code_interpreter_call.outputs',
  'web_search_call.action.sources',
  'reasoning.encrypted_content',
];
const BUILTIN = ['python', 'browser'];
const RUNS = ['code_interpreter_call', 'web_search_call', 'mcp_call'];
const FILE = /\/v1\/containers\/(\w+)\/files\/(\w+)\/content$/;
const WEB = /^https?:\/\//i;
const PICTURE = /^data:image\/(png|jpeg|gif|webp|svg\+xml);base64,/;

/**
 * The body of the request that goes on from a conversation.
 *
 * @param {Conversation} conversation
 * @param {string[]} names of the server's tools
 * @returns {object}
 */
export function responseRequest({ options, messages }, names) {
  const container = messages.findLast((message) => message.container)?.container;
  const python = { type: 'code_interpreter', container: container ?? { type: 'auto' } };
  const served = [
    ...(names.includes('python') ? [python] : []),
    ...(names.includes('browser') ? [{ type: 'web_search' }] : []),
    // Whom the server asks about their calls is its person's to say.
    ...names.filter((name) => !BUILTIN.includes(name)).map((name) => ({
      type: 'mcp',
      server_label: name,
      require_approval: 'never',
    })),
  ];
  return {
    model: options.model,
    input: messages.flatMap((_, index) => items(messages, index)),
    tools: [...parseTools(options.tools), ...served],
    reasoning: { effort: options.effort },
    include: INCLUDE,
    store: false,
    tool_approval: 'ask',
    ...(options.system.trim() ? { instructions: options.system } : {}),
    ...(options.temperature === null ? {} : { temperature: options.temperature }),
    ...(options.limit === null ? {} : { max_output_tokens: options.limit }),
  };
}

/**
 * A message as the API has it. An answer that calls functions is sent back with all that led to it.
 *
 * @param {Message[]} messages
 * @param {number} index
 * @returns {object[]}
 */
function items(messages, index) {
  const message = messages[index];
  const { role, content, reasoning, callId } = message;
  if (role === 'user') return [{ role, content }];
  if (role === 'tool') return [{ type: 'function_call_output', call_id: callId, output: content }];
  const calls = completeCalls(message);
  if (!calls.length) return content ? [{ role, content }] : [];
  const thoughts = [{ type: 'reasoning_text', text: reasoning }];
  const written = [
    ...(reasoning ? [{ type: 'reasoning', content: thoughts }] : []),
    ...(content ? [{ role, content, phase: 'commentary' }] : []),
    ...calls.map(({ id, name, arguments: text }) => ({
      type: 'function_call',
      call_id: id,
      name,
      arguments: text,
    })),
  ];
  const results = passedOver(messages, index).map(({ id }) => ({
    type: 'function_call_output',
    call_id: id,
    output: 'No result was given.',
  }));
  return [...(message.items ?? written), ...results];
}

/** What grows a message from the events of its response. */
export class Growth {
  /** @type {Map<number, Run | Call>} by the place in the output */
  #parts = new Map();

  /** @param {Message} message */
  constructor(message) {
    this.message = message;
  }

  /** @param {any} event of the API */
  take(event) {
    const { message } = this;
    const part = this.#parts.get(event.output_index);
    switch (event.type) {
      case 'response.created':
        message.response = String(event.response?.id ?? '');
        break;
      case 'response.output_item.added':
        this.#begin(event.output_index, event.item);
        break;
      case 'response.reasoning_text.delta':
        message.reasoning = (message.reasoning ?? '') + event.delta;
        break;
      case 'response.output_text.delta':
      case 'response.refusal.delta':
        message.content += event.delta;
        break;
      case 'response.output_text.annotation.added':
        this.#cite(event.annotation);
        break;
      case 'response.function_call_arguments.delta':
        if (part && 'arguments' in part) part.arguments += event.delta;
        break;
      case 'response.code_interpreter_call_code.delta':
      case 'response.mcp_call_arguments.delta':
        if (part && 'text' in part) part.text += event.delta;
        break;
      case 'response.code_interpreter_call.interpreting':
      case 'response.web_search_call.searching':
        if (part && 'text' in part) Object.assign(part, { status: 'running', waits: false });
        break;
      case 'response.mcp_call_arguments.done':
        if (part && 'text' in part) part.status = 'running';
        break;
      case 'response.tool_approval.requested':
        if (part && 'text' in part) part.waits = true;
        break;
      case 'response.output_item.done':
        if (part && 'text' in part) Object.assign(part, runOf(event.item), { waits: false });
        if (event.item.container_id) message.container = event.item.container_id;
        break;
      case 'response.completed':
      case 'response.incomplete':
        this.#end(event.response);
    }
  }

  /**
   * @param {number} index
   * @param {any} item
   */
  #begin(index, item) {
    const { message } = this;
    if (item.type === 'reasoning' && message.reasoning) message.reasoning += '\n\n';
    if (item.type === 'message' && message.content) message.content += '\n\n';
    if (item.type === 'function_call') {
      const call = { id: item.call_id, name: item.name, arguments: '' };
      (message.calls ??= []).push(call);
      this.#parts.set(index, call);
    }
    if (RUNS.includes(item.type)) {
      const run = runOf(item);
      (message.runs ??= []).push(run);
      this.#parts.set(index, run);
    }
  }

  /** @param {any} annotation */
  #cite({ type, container_id: container, file_id: id, filename, title, url }) {
    const { message } = this;
    if (type === 'container_file_citation') {
      (message.files ??= []).push({ container, id, name: filename });
      return;
    }
    const isPage = type === 'url_citation' && WEB.test(url);
    const source = isPage ? { title: title || url, url } : { title: filename ?? title };
    const known = (message.sources ??= []);
    if (!known.some((one) => one.title === source.title && one.url === source.url)) {
      known.push(source);
    }
  }

  /** @param {any} response */
  #end({ status, usage, output, incomplete_details: details }) {
    const { message } = this;
    const ended = message.calls?.length ? 'tool_calls' : 'stop';
    const blocked = details?.reason === 'content_filter';
    message.finish = status === 'completed' ? ended : blocked ? 'content_filter' : 'length';
    if (message.calls?.length) message.items = output;
    if (!usage) return;
    message.usage = {
      prompt_tokens: usage.input_tokens,
      completion_tokens: usage.output_tokens,
      total_tokens: usage.total_tokens,
      completion_tokens_details: usage.output_tokens_details,
    };
  }
}

/**
 * @param {any} item
 * @returns {Run}
 */
function runOf(item) {
  const { id, status } = item;
  if (item.type === 'web_search_call') {
    const found = (item.action?.sources ?? []).map((/** @type {any} */ { url }) =>
      WEB.test(url) ? { title: url, url } : { title: String(url) },
    );
    return { id, kind: 'browser', status, text: actionText(item.action ?? {}), found };
  }
  if (item.type === 'mcp_call') {
    const { name, server_label: server, arguments: text } = item;
    return { id, kind: 'mcp', status, text, server, name, result: resultOf(item) };
  }
  const outputs = item.outputs ?? [];
  const logs = outputs.filter((/** @type {any} */ { type }) => type === 'logs');
  const figures = outputs
    .map((/** @type {any} */ { url }) => FILE.exec(url ?? ''))
    .filter(Boolean)
    .map((/** @type {RegExpExecArray} */ [, container, file]) => ({ container, id: file }));
  const result = logs.map((/** @type {any} */ one) => one.logs).join('\n');
  return { id, kind: 'python', status, text: item.code ?? '', result, figures };
}

/**
 * What a call of a server's tool gave, or why it gave nothing.
 *
 * @param {any} item
 * @returns {string}
 */
function resultOf({ output, error }) {
  if (typeof output === 'string') return output;
  const parts = Array.isArray(error?.content) ? error.content : [];
  return parts.map((/** @type {any} */ { text }) => String(text ?? '')).join('\n');
}

/** @param {any} action */
function actionText({ type, query, url, pattern }) {
  if (type === 'open_page') return url ? `Opens ${url}` : 'Opens a page';
  if (type === 'find_in_page') return `Looks for “${pattern}”${url ? ` in ${url}` : ''}`;
  return query ? `Searches for “${query}”` : 'Searches';
}

/**
 * Runs from a value that was stored; null where it is none.
 *
 * @param {any} value
 * @returns {Run | null}
 */
export function restoreRun(value) {
  if (!['id', 'text', 'status'].every((name) => typeof value?.[name] === 'string')) return null;
  const { id, text, status } = value;
  const result = typeof value.result === 'string' ? value.result : '';
  const figures = Array.isArray(value.figures) ? value.figures.filter(isFigure) : [];
  const found = Array.isArray(value.found) ? value.found.filter(isSource) : [];
  const kind = ['browser', 'mcp'].includes(value.kind) ? value.kind : 'python';
  const [server, name] = [value.server, value.name].map((one) => String(one ?? ''));
  return { id, kind, text, status, result, figures, found, ...(kind === 'mcp' && { server, name }) };
}

/** @param {any} value */
function isFigure({ container, id, data } = /** @type {any} */ ({})) {
  return isFile({ container, id, name: '' }) && (data === undefined || PICTURE.test(data));
}

/** @param {any} value */
export function isFile({ container, id, name } = /** @type {any} */ ({})) {
  return /^\w+$/.test(container) && /^\w+$/.test(id) && typeof name === 'string';
}

/** @param {any} value */
export function isSource({ title, url } = /** @type {any} */ ({})) {
  return typeof title === 'string' && (url === undefined || WEB.test(url));
}
