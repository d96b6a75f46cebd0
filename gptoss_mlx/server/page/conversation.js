/**
 * Conversations: what they hold, how an answer grows, and the request that goes on from one.
 *
 * Everything is plain data, so that it can be stored, exported and compared.
 */

import { isFile, isSource, restoreRun } from './responses.js';

/** @import { Chunk, Timings, Usage } from './api.js' */
/** @import { FileMade, Run, Source } from './responses.js' */

/**
 * @typedef {object} Call a tool call
 * @property {string} id
 * @property {string} name
 * @property {string} arguments JSON as the model wrote it
 *
 * @typedef {object} Failure why an answer did not end by itself
 * @property {'api' | 'connection' | 'cut' | 'stopped'} kind
 * @property {string} text
 *
 * @typedef {object} Message
 * @property {'user' | 'assistant' | 'tool'} role
 * @property {string} content
 * @property {string} [reasoning]
 * @property {number} [thoughtMs] time from the first word of the reasoning to the last
 * @property {Call[]} [calls]
 * @property {string} [callId] the call that a tool's message answers
 * @property {string} [name] the tool's
 * @property {string} [model]
 * @property {string} [finish] the finish reason
 * @property {Usage} [usage]
 * @property {Timings} [timings]
 * @property {Failure} [failure]
 * @property {Run[]} [runs] calls that the server ran
 * @property {FileMade[]} [files] that they made
 * @property {Source[]} [sources] that the answer cites
 * @property {string} [container] where they ran
 * @property {string} [response] the id of the response
 * @property {object[]} [items] of the response, where it calls functions
 *
 * @typedef {object} Options
 * @property {string} model
 * @property {string} effort low, medium or high
 * @property {string} system the system prompt
 * @property {number | null} temperature
 * @property {number | null} limit tokens of an answer
 * @property {string} tools a JSON list, as the person wrote it
 * @property {string[]} served names of the server's tools that the model may use
 *
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {number} created milliseconds since 1970
 * @property {number} updated milliseconds since 1970
 * @property {number} revision counts what was stored
 * @property {Options} options
 * @property {Message[]} messages
 */

export const EFFORTS = ['low', 'medium', 'high'];
const TEXTS = ['reasoning', 'callId', 'name', 'model', 'finish', 'container', 'response'];
const ROLES = ['user', 'assistant', 'tool'];
const TITLE_LENGTH = 60;

/** @type {Failure} of an answer that was stored while it grew */
const UNFINISHED = {
  kind: 'cut',
  text: 'The page was closed before the answer ended, or it goes on in another tab.',
};

/** @type {Options} */
export const DEFAULTS = {
  model: '',
  effort: 'medium',
  system: '',
  temperature: null,
  limit: null,
  tools: '',
  served: [],
};

/** @returns {string} 16 random bytes in hexadecimal */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * @param {Options} options
 * @returns {Conversation}
 */
export function newConversation(options) {
  const now = Date.now();
  return {
    id: newId(),
    title: '',
    created: now,
    updated: now,
    revision: 0,
    options: { ...options },
    messages: [],
  };
}

/**
 * The first line of the first message, shortened.
 *
 * @param {Conversation} conversation
 */
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = conversation.messages.find((message) => message.role === 'user');
  const line = first?.content.trim().split('\n')[0] ?? '';
  const letters = Array.from(line);
  if (letters.length <= TITLE_LENGTH) return line || 'New conversation';
  return letters.slice(0, TITLE_LENGTH).join('').trimEnd() + '…';
}

/**
 * Adds a chunk of the stream to an answer.
 *
 * @param {Message} message
 * @param {Chunk} chunk
 */
export function grow(message, chunk) {
  if (chunk.usage) message.usage = chunk.usage;
  if (chunk.timings) message.timings = chunk.timings;
  const choice = chunk.choices[0];
  if (!choice) return;
  const delta = choice.delta ?? {};
  const reasoning = delta.reasoning ?? delta.reasoning_content;
  if (reasoning) message.reasoning = (message.reasoning ?? '') + reasoning;
  if (delta.content) message.content += delta.content;
  if (delta.refusal) message.content += delta.refusal;
  for (const piece of delta.tool_calls ?? []) {
    const calls = (message.calls ??= []);
    const index = piece.index ?? 0;
    const call = (calls[index] ??= { id: '', name: '', arguments: '' });
    if (piece.id) call.id = piece.id;
    if (piece.function?.name) call.name += piece.function.name;
    if (piece.function?.arguments) call.arguments += piece.function.arguments;
  }
  if (choice.finish_reason) message.finish = choice.finish_reason;
}

/**
 * Calls of the last answer that no tool's message follows.
 *
 * @param {Message[]} messages
 * @returns {Call[]}
 */
export function openCalls(messages) {
  const last = messages.findLastIndex((message) => message.role !== 'tool');
  const answered = new Set(messages.slice(last + 1).map((message) => message.callId));
  return completeCalls(messages[last]).filter((call) => !answered.has(call.id));
}

/**
 * Calls that were written to their end: a broken-off answer may leave half of one.
 *
 * @param {Message | undefined} message
 * @returns {Call[]}
 */
export function completeCalls(message) {
  return message && !message.failure ? (message.calls ?? []) : [];
}

/**
 * @param {string} text a JSON list of tools, or nothing
 * @returns {object[]}
 * @throws {Error} with a sentence for the person
 */
export function parseTools(text) {
  if (!text.trim()) return [];
  let tools;
  try {
    tools = JSON.parse(text);
  } catch (error) {
    throw new Error(`This is not JSON: ${error instanceof Error ? error.message : error}`);
  }
  if (!Array.isArray(tools)) throw new Error('A list is wanted: [ … ].');
  return tools.map((tool, index) => {
    const wrapped = tool?.type === 'function' ? tool : { type: 'function', function: tool };
    if (typeof wrapped.function?.name !== 'string') {
      throw new Error(`Tool ${index + 1} has no name.`);
    }
    return wrapped;
  });
}

/**
 * The body of the request that goes on from a conversation.
 *
 * @param {Conversation} conversation
 * @returns {object}
 */
export function requestOf({ options, messages }) {
  /** @type {Record<string, unknown>} */
  const body = { model: options.model, messages: [], reasoning_effort: options.effort };
  if (options.temperature !== null) body.temperature = options.temperature;
  if (options.limit !== null) body.max_completion_tokens = options.limit;
  const tools = parseTools(options.tools);
  if (tools.length) body.tools = tools;
  const system = options.system.trim() ? [{ role: 'system', content: options.system }] : [];
  body.messages = [...system, ...messages.flatMap((_, index) => wire(messages, index))];
  return body;
}

/**
 * A message as the API has it; none for an answer that is empty.
 *
 * A call must have a result. One that the person passed over gets a sentence that says so.
 *
 * @param {Message[]} messages
 * @param {number} index
 * @returns {object[]}
 */
function wire(messages, index) {
  const message = messages[index];
  if (message.role === 'user') return [{ role: 'user', content: message.content }];
  if (message.role === 'tool') {
    return [{ role: 'tool', tool_call_id: message.callId, content: message.content }];
  }
  const calls = completeCalls(message);
  if (!calls.length) {
    return message.content ? [{ role: 'assistant', content: message.content }] : [];
  }
  const answer = {
    role: 'assistant',
    content: message.content || null,
    ...(message.reasoning ? { reasoning: message.reasoning } : {}),
    tool_calls: calls.map(({ id, name, arguments: text }) => ({
      id,
      type: 'function',
      function: { name, arguments: text },
    })),
  };
  const results = passedOver(messages, index).map(({ id }) => ({
    role: 'tool',
    tool_call_id: id,
    content: 'No result was given.',
  }));
  return [answer, ...results];
}

/**
 * Calls of an answer that the person passed over: the conversation has gone on without a result.
 *
 * @param {Message[]} messages
 * @param {number} index of the answer
 * @returns {Call[]}
 */
export function passedOver(messages, index) {
  const end = messages.findIndex((later, at) => at > index && later.role !== 'tool');
  return end < 0 ? [] : openCalls(messages.slice(0, end));
}

/**
 * Tokens that the conversation fills of the context, as the server counted them last. The counts of
 * an answer with runs are those of several prompts.
 *
 * @param {Conversation} conversation
 */
export function contextUsed({ messages }) {
  return messages.findLast(({ usage, runs }) => usage && !runs)?.usage?.total_tokens ?? 0;
}

/**
 * A conversation from a value that was stored or imported, or null where it is none.
 *
 * @param {any} value
 * @returns {Conversation | null}
 */
export function restore(value) {
  if (typeof value?.id !== 'string' || !value.id || !Array.isArray(value.messages)) return null;
  const messages = value.messages.map(restoreMessage);
  if (messages.includes(null)) return null;
  return {
    id: value.id,
    title: typeof value.title === 'string' ? value.title : '',
    created: number(value.created, Date.now()),
    updated: number(value.updated, Date.now()),
    revision: number(value.revision, 0),
    options: restoreOptions(value.options),
    messages,
  };
}

/**
 * Options from a value that was stored; what is missing or wrong is the default.
 *
 * @param {any} value
 * @returns {Options}
 */
export function restoreOptions(value) {
  const options = { ...DEFAULTS };
  for (const name of /** @type {const} */ (['model', 'system', 'tools'])) {
    if (typeof value?.[name] === 'string') options[name] = value[name];
  }
  if (EFFORTS.includes(value?.effort)) options.effort = value.effort;
  const served = Array.isArray(value?.served) ? value.served : [];
  options.served = served.filter((/** @type {unknown} */ name) => typeof name === 'string');
  options.temperature = number(value?.temperature, null);
  options.limit = number(value?.limit, null);
  return options;
}

/**
 * @template T
 * @param {unknown} value
 * @param {T} otherwise
 * @returns {number | T}
 */
function number(value, otherwise) {
  return typeof value === 'number' && Number.isFinite(value) ? value : otherwise;
}

/**
 * @param {any} value
 * @returns {Message | null}
 */
function restoreMessage(value) {
  if (!ROLES.includes(value?.role) || typeof value.content !== 'string') return null;
  const { calls } = value;
  if (calls !== undefined && !(Array.isArray(calls) && calls.every(isCall))) return null;
  /** @type {Message} */
  const message = { role: value.role, content: value.content };
  if (calls?.length) message.calls = calls;
  for (const name of TEXTS) {
    if (typeof value[name] === 'string') Reflect.set(message, name, value[name]);
  }
  const runs = Array.isArray(value.runs) ? value.runs.map(restoreRun).filter(Boolean) : [];
  if (runs.length) message.runs = runs;
  if (Array.isArray(value.files)) message.files = value.files.filter(isFile);
  if (Array.isArray(value.sources)) message.sources = value.sources.filter(isSource);
  if (Array.isArray(value.items)) message.items = value.items;
  if (typeof value.thoughtMs === 'number') message.thoughtMs = value.thoughtMs;
  if (typeof value.usage?.total_tokens === 'number') message.usage = value.usage;
  if (typeof value.timings === 'object' && value.timings) message.timings = value.timings;
  if (typeof value.failure?.text === 'string') message.failure = value.failure;
  else if (value.role === 'assistant' && !message.finish) message.failure = { ...UNFINISHED };
  return message;
}

/** @param {any} call */
function isCall(call) {
  return [call?.id, call?.name, call?.arguments].every((part) => typeof part === 'string');
}
