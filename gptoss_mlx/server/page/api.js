/**
 * The server's HTTP API: models, health, streamed chat completions and responses, files.
 *
 * What fails is one of two errors: `ApiError`, the server's own refusal in its own words, and
 * `ConnectionLost`, when there is no server or the stream ended before the answer did.
 */

const KEY = 'gptoss.key';

/** A refusal of the server's. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, type?: string, code?: string}} [details]
   */
  constructor(message, { status = 0, type = '', code = '' } = {}) {
    super(message);
    this.status = status;
    this.type = type;
    this.code = code;
  }
}

/** No connection: `begun` says whether an answer had begun. */
export class ConnectionLost extends Error {
  /** @param {boolean} begun */
  constructor(begun) {
    super(begun ? 'The connection broke off before the answer ended.' : 'No server answers.');
    this.begun = begun;
  }
}

/**
 * @typedef {object} Model
 * @property {string} id
 * @property {number} [context_length] tokens
 * @property {Record<string, string>} [server_tools] those that the server runs, with their rules
 *
 * @typedef {object} Health
 * @property {string} status ok, loading or error
 * @property {number} [done] bytes
 * @property {number} [total] bytes
 * @property {string} [message]
 *
 * @typedef {object} Usage
 * @property {number} prompt_tokens
 * @property {number} completion_tokens
 * @property {number} total_tokens
 * @property {{reasoning_tokens?: number}} [completion_tokens_details]
 * @property {{cached_tokens?: number}} [prompt_tokens_details]
 *
 * @typedef {object} Timings
 * @property {number} [prompt_ms]
 * @property {number} [predicted_ms]
 * @property {number} [predicted_per_second]
 *
 * @typedef {object} CallDelta
 * @property {number} [index]
 * @property {string} [id]
 * @property {{name?: string, arguments?: string}} [function]
 *
 * @typedef {object} Delta
 * @property {string | null} [content]
 * @property {string | null} [refusal] what the server's guard says in place of an answer
 * @property {string | null} [reasoning]
 * @property {string | null} [reasoning_content]
 * @property {CallDelta[]} [tool_calls]
 *
 * @typedef {object} Chunk
 * @property {{delta?: Delta, finish_reason?: string | null}[]} choices
 * @property {Usage | null} [usage]
 * @property {Timings} [timings]
 *
 * @typedef {{kind: 'prefill', done: number, total: number}} Prefill
 * @typedef {{kind: 'held', tokens: number}} Held an answer that is judged before it is given
 * @typedef {Prefill | Held} Progress
 *
 * @typedef {Progress | {kind: 'chunk', chunk: Chunk}} Event
 */

/** @returns {string} the API key of this tab, or nothing */
function key() {
  try {
    return sessionStorage.getItem(KEY) ?? '';
  } catch {
    return '';
  }
}

/** @type {string | null} for a browser that keeps no session storage */
let unstored = null;

/** @param {string} value the API key, kept until the tab is closed */
export function setKey(value) {
  unstored = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // The key lasts as long as the page then.
  }
}

/**
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 */
async function send(path, options = {}) {
  /** @type {Record<string, string>} */
  const headers = options.body ? { 'Content-Type': 'application/json' } : {};
  const secret = unstored ?? key();
  if (secret) headers.Authorization = `Bearer ${secret}`;
  try {
    return await fetch(path, { ...options, headers, cache: 'no-store' });
  } catch (error) {
    throw aborted(error) ? error : new ConnectionLost(false);
  }
}

/** @param {unknown} error */
export function aborted(error) {
  return error instanceof DOMException && error.name === 'AbortError';
}

/**
 * @param {Response} response not a success
 * @returns {Promise<ApiError>}
 */
async function refusal(response) {
  const body = await response.json().catch(() => null);
  return described(body?.error, response.status);
}

/**
 * @param {any} error what stands under "error" in an answer
 * @param {number} status
 * @returns {ApiError}
 */
function described(error, status) {
  const said = typeof error === 'string' ? error : error?.message;
  const message = typeof said === 'string' && said ? said : `The server answered ${status}.`;
  return new ApiError(message, {
    status,
    type: String(error?.type ?? ''),
    code: String(error?.code ?? ''),
  });
}

/** @returns {Promise<Model[]>} */
export async function models() {
  const response = await send('/v1/models');
  if (!response.ok) throw await refusal(response);
  const body = await response.json().catch(() => null);
  return Array.isArray(body?.data) ? body.data : [];
}

/** @returns {Promise<Health>} also while the server answers 503 because it loads */
export async function health() {
  const response = await send('/health');
  const body = await response.json().catch(() => null);
  if (typeof body?.status === 'string') return body;
  if (!response.ok) throw described(body?.error, response.status);
  return { status: 'ok' };
}

/**
 * Asks for an answer and gives its events as they come.
 *
 * @param {object} body the request, without `stream`
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<Event, void, void>}
 */
export async function* chat(body, signal) {
  const request = { ...body, stream: true, stream_options: { include_usage: true } };
  for await (const found of streamed('/v1/chat/completions', request, signal)) {
    if (typeof found !== 'string') yield found;
    else if (found === '[DONE]') return;
    else {
      const chunk = parsed(found);
      if (chunk?.error) throw described(chunk.error, 0);
      const choices = Array.isArray(chunk?.choices) ? chunk.choices : [];
      yield { kind: 'chunk', chunk: { ...chunk, choices } };
    }
  }
  throw new ConnectionLost(true);
}

/**
 * Asks for an answer of a model whose server runs tools, and gives its events as they come.
 *
 * @param {object} body the request, without `stream`
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<Progress | {kind: 'event', event: any}, void, void>}
 */
export async function* respond(body, signal) {
  for await (const found of streamed('/v1/responses', { ...body, stream: true }, signal)) {
    if (typeof found !== 'string') {
      yield found;
      continue;
    }
    const event = parsed(found);
    if (event?.type === 'error') throw described(event, 0);
    if (event?.type === 'response.failed') throw described(event.response?.error, 0);
    yield { kind: 'event', event };
    if (['response.completed', 'response.incomplete'].includes(event?.type)) return;
  }
  throw new ConnectionLost(true);
}

/**
 * Says whether a call may run that waits for a person's word.
 *
 * @param {string} response its id
 * @param {string} item the call's id
 * @param {boolean} approve
 */
export async function approve(response, item, approve) {
  const body = JSON.stringify({ item_id: item, approve });
  const answer = await send(`/v1/responses/${response}/approvals`, { method: 'POST', body });
  if (!answer.ok) throw await refusal(answer);
}

/**
 * The bytes of a file that python made.
 *
 * @param {{container: string, id: string}} file
 * @returns {Promise<Blob>}
 */
export async function fileContent({ container, id }) {
  const answer = await send(`/v1/containers/${container}/files/${id}/content`);
  if (!answer.ok) throw await refusal(answer);
  return answer.blob();
}

/**
 * The events of a streamed answer: progress, and the data of each event.
 *
 * @param {string} path
 * @param {object} request
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<Progress | string, void, void>}
 */
async function* streamed(path, request, signal) {
  const response = await send(path, { method: 'POST', body: JSON.stringify(request), signal });
  if (!response.ok || !response.body) throw await refusal(response);
  for await (const line of lines(response.body)) {
    const prefill = /^: *prefill (\d+)\/(\d+)/.exec(line);
    if (prefill) yield { kind: 'prefill', done: Number(prefill[1]), total: Number(prefill[2]) };
    const held = /^: *held (\d+)/.exec(line);
    if (held) yield { kind: 'held', tokens: Number(held[1]) };
    if (line.startsWith('data:')) yield line.slice(5).trim();
  }
}

/** @param {string} data one JSON object, as an event of the API has it on one line */
function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError('The server sent an event that is not JSON.');
  }
}

/**
 * Lines of a body, without their ends.
 *
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<string, void, void>}
 */
async function* lines(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      const found = (rest + decoder.decode(value, { stream: !done })).split(/\r?\n/);
      rest = found.pop() ?? '';
      yield* found;
      if (done) return;
    }
  } catch (error) {
    throw error instanceof TypeError ? new ConnectionLost(true) : error;
  } finally {
    reader.cancel().catch(() => {}); // the reader is done with, however it ended
  }
}
