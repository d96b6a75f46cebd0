// Anthropic's own client for Node against the server at $BASE_URL. Prints what it read, as JSON.
import Anthropic from '@anthropic-ai/sdk';

const client = new Anthropic({ baseURL: process.env.BASE_URL, apiKey: 'local', maxRetries: 0 });
const tools = [{ name: 'f', input_schema: { type: 'object' } }];
const ask = { model: 'claude-local', max_tokens: 1000, tools };
const question = { role: 'user', content: 'hi' };

const events = [];
const stream = client.messages.stream({ ...ask, messages: [question] });
stream.on('streamEvent', (event) => events.push(event.type));
const called = await stream.finalMessage();
const call = called.content.at(-1);
const answer = await client.messages.create({
  ...ask,
  messages: [
    question,
    { role: 'assistant', content: called.content },
    { role: 'user', content: [{ type: 'tool_result', tool_use_id: call.id, content: 'seventeen' }] },
  ],
});
const count = await client.messages.countTokens({ model: ask.model, messages: [question], tools });
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const failed = await client.messages
  .create({ ...ask, model: 'gpt-9', messages: [question] })
  .catch((error) => [error.constructor.name, error.status, error.requestID]);
console.log(JSON.stringify({ events, called, answer, count, models, failed }));
