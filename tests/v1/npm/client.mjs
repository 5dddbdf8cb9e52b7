// OpenAI's SDK for JavaScript against a running service; prints what it saw, as JSON.
// Environment: LUTHIER_V1 (the base URL), LUTHIER_KEY, LUTHIER_MODEL, LUTHIER_TUNED.
import OpenAI from "openai";

const { LUTHIER_V1, LUTHIER_KEY, LUTHIER_MODEL, LUTHIER_TUNED } = process.env;
const client = new OpenAI({ baseURL: LUTHIER_V1, apiKey: LUTHIER_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: process.argv[2] }];
const asked = { messages, temperature: 0, max_completion_tokens: 96 };

async function whole(model) {
  const answer = await client.chat.completions.create({ model, ...asked });
  return answer.choices[0].message.content;
}

async function streamed(model) {
  const options = { stream: true, stream_options: { include_usage: true } };
  let text = "";
  let usage = null;
  for await (const chunk of await client.chat.completions.create({ model, ...asked, ...options })) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  return { text, usage };
}

async function helped(model) {
  const stream = client.chat.completions.stream({ model, ...asked });
  return (await stream.finalChatCompletion()).choices[0].message.content;
}

async function kept() {
  const schema = {
    type: "object",
    properties: { yes: { type: "boolean" } },
    required: ["yes"],
    additionalProperties: false,
  };
  const answer = await client.chat.completions.create({
    model: LUTHIER_MODEL,
    ...asked,
    response_format: { type: "json_schema", json_schema: { name: "answer", schema } },
  });
  return JSON.parse(answer.choices[0].message.content);
}

async function refused() {
  try {
    await client.chat.completions.create({ model: "gpt-9", ...asked });
  } catch (error) {
    const { status, code, param, type, requestID } = error;
    return { kind: error.constructor.name, status, code, param, type, requestID };
  }
  return null;
}

async function continued() {
  const answer = await client.completions.create({
    model: LUTHIER_MODEL,
    prompt: "Once",
    temperature: 0,
    max_tokens: 5,
    logprobs: 1,
  });
  const { text, logprobs } = answer.choices[0];
  return { text, tokens: logprobs.tokens };
}

console.log(
  JSON.stringify({
    base: await whole(LUTHIER_MODEL),
    tuned: await whole(LUTHIER_TUNED),
    streamed: await streamed(LUTHIER_TUNED),
    helped: await helped(LUTHIER_TUNED),
    kept: await kept(),
    refused: await refused(),
    continued: await continued(),
  }),
);
