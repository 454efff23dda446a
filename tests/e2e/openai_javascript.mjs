// The `openai` package for JavaScript against a node, driven by test_openai_javascript.py: one line of JSON per check.
// Arguments: the folder that has node_modules, the base URL with /v1, the API key.
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, baseURL, apiKey] = process.argv.slice(2);
const require = createRequire(join(folder, "package.json"));
const OpenAI = (await import(pathToFileURL(require.resolve("openai")).href)).default;

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "count from 1 to 20" }];
const asked = { model: "demo", messages, temperature: 0 };

const tell = (check, facts) => console.log(JSON.stringify({ check, ...facts }));
const failure = async (promise) => {
  try {
    await promise;
    return { name: "none" };
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code, type: error.type, message: error.message };
  }
};

const listed = [];
for await (const model of client.models.list()) listed.push({ id: model.id, context: model.context_length });
tell("models", { listed, one: (await client.models.retrieve("demo")).id });

const { data, response } = await client.chat.completions.create(asked).withResponse();
tell("chat", {
  text: data.choices[0].message.content,
  reason: data.choices[0].finish_reason,
  usage: data.usage,
  headers: Object.fromEntries([...response.headers].filter(([name]) => name.startsWith("x-meshnode-"))),
});

const pieces = [];
let usage = null;
for await (const chunk of await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
})) {
  if (chunk.choices[0]?.delta?.content) pieces.push(chunk.choices[0].delta.content);
  usage = chunk.usage ?? usage;
}
tell("stream", { text: pieces.join(""), pieces: pieces.length, usage });

// llama.cpp's ignore_eos makes an answer that would go on for long after we have left.
const long = await client.chat.completions.create({ ...asked, stream: true, max_tokens: 3000, ignore_eos: true });
let heard = 0;
for await (const _ of long) if (++heard === 5) long.controller.abort();
tell("abort", { heard, aborted: long.controller.signal.aborted });

const tool = { type: "function", function: { name: "add", parameters: { type: "object", properties: {} } } };
tell("tools", { usage: (await client.chat.completions.create({ ...asked, tools: [tool], max_tokens: 5 })).usage });

const written = await client.responses.create({ model: "demo", input: "count from 1 to 20", temperature: 0 });
tell("responses", { text: written.output_text, status: written.status });

tell("embeddings", await failure(client.embeddings.create({ model: "demo", input: "one" })));
tell("unknown", await failure(client.chat.completions.create({ ...asked, model: "demi" })));
tell("key", await failure(new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list()));
tell("end", {});
