// OpenAI's own client for Node against the server at $BASE_URL. Prints what it read, as JSON.
import OpenAI from 'openai';

const client = new OpenAI({
  baseURL: `${process.env.BASE_URL}/v1`,
  apiKey: 'local',
  maxRetries: 0,
});
const parameters = { type: 'object', properties: { a: { type: 'integer' } } };
const tools = [{ type: 'function', function: { name: 'f', parameters } }];
const question = { role: 'user', content: 'hi' };

const stream = client.chat.completions.stream({ model: 'scripted', messages: [question], tools });
let pieces = 0;
for await (const chunk of stream) pieces += chunk.choices.length;
const called = (await stream.finalChatCompletion()).choices[0];
const call = called.message.tool_calls[0];
const messages = [
  question,
  called.message,
  { role: 'tool', tool_call_id: call.id, content: 'seventeen' },
];
const answer = await client.chat.completions.create({ model: 'scripted', messages, tools });
const response = await client.responses.create({ model: 'scripted', input: 'hi' });
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const failed = await client.chat.completions
  .create({ model: 'gpt-9', messages: [question] })
  .catch((error) => [error.constructor.name, error.status, error.code]);

const controller = new AbortController();
const long = await client.chat.completions.create(
  { model: 'scripted', messages: [question], stream: true },
  { signal: controller.signal },
);
for await (const chunk of long) if (chunk.choices[0].delta.content) controller.abort();

console.log(JSON.stringify({ pieces, called, answer, output: response.output_text, models, failed }));
