// Ollama's own client against a server whose model is scripted, at $BASE_URL.
const assert = require("node:assert/strict");
const { Ollama } = require("ollama");

const tools = [
  {
    type: "function",
    function: { name: "f", description: "", parameters: { type: "object", properties: {} } },
  },
];

async function main() {
  const client = new Ollama({ host: process.env.BASE_URL });
  const model = (await client.list()).models[0].name;
  assert.ok((await client.show({ model })).capabilities.includes("tools"));
  assert.equal((await client.ps()).models.length, 1);
  assert.equal((await client.pull({ model })).status, "success");

  const messages = [{ role: "user", content: "hi" }];
  const whole = await client.chat({ model, messages });
  assert.deepEqual([whole.message.content, whole.message.thinking], ["Hello é.", "Hm."]);

  const seen = { content: "", thinking: "" };
  let last;
  for await (const part of await client.chat({ model, messages, stream: true })) {
    seen.content += part.message.content;
    seen.thinking += part.message.thinking ?? "";
    last = part;
  }
  assert.deepEqual(seen, { content: "Hello é.", thinking: "Hm." });
  assert.ok(last.done && last.eval_count > 0);

  const called = (await client.chat({ model, messages, tools })).message;
  assert.deepEqual(called.tool_calls[0].function.arguments, { a: 1 });
  const history = [...messages, called, { role: "tool", tool_name: "f", content: "17" }];
  assert.equal((await client.chat({ model, messages: history, tools })).message.content, "Hello é.");

  const format = { type: "object", properties: { a: { type: "integer" } }, required: ["a"] };
  const told = await client.generate({ model, prompt: "hi", format });
  assert.deepEqual(JSON.parse(told.response), { a: 1 });
  const text = [];
  for await (const part of await client.generate({ model, prompt: "hi", stream: true })) {
    text.push(part.response);
  }
  assert.equal(text.join(""), "Hello é.");

  await assert.rejects(client.chat({ model: "llama3", messages }), /llama3/);
  await assert.rejects(client.embed({ model, input: "x" }), /embeddings/);

  const stream = await client.chat({ model, messages, stream: true });
  await assert.rejects(async () => {
    for await (const part of stream) {
      if (part.message.content) stream.abort();
    }
  }, /abort/i);
  console.log("ok");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
