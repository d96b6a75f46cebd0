// Vercel's AI SDK against the server at $BASE_URL, as clients for local servers set it up: a stream
// with a tool that the SDK runs itself, then an object by a schema. Prints what it read, as JSON.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateObject, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

const provider = createOpenAICompatible({
  name: 'local',
  baseURL: `${process.env.BASE_URL}/v1`,
  apiKey: 'local',
  supportsStructuredOutputs: true,
  includeUsage: true,
});
const model = provider('scripted');
const asked = [];
const result = streamText({
  model,
  prompt: 'hi',
  stopWhen: stepCountIs(3),
  tools: {
    f: tool({
      description: 'f',
      inputSchema: z.object({ a: z.number() }),
      execute: async (input) => {
        asked.push(input);
        return 'seventeen';
      },
    }),
  },
});
let text = '';
let reasoning = '';
const errors = [];
for await (const part of result.fullStream) {
  if (part.type === 'text-delta') text += part.text;
  if (part.type === 'reasoning-delta') reasoning += part.text;
  if (part.type === 'error') errors.push(String(part.error));
}
const usage = await result.totalUsage;
const { object } = await generateObject({ model, schema: z.object({ a: z.number() }), prompt: 'hi' });
console.log(JSON.stringify({ asked, text, reasoning, errors, usage, object }));
