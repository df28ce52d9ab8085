// Vercel's AI SDK: OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none node with_ai_sdk.mjs PICTURE.png
import { readFileSync } from "node:fs";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const opsin = createOpenAICompatible({
  name: "opsin",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  supportsStructuredOutputs: true,
  includeUsage: true,
});
const image = readFileSync(process.argv[2]);
const ask = (question) => ({
  model: opsin("opsin-mini"),
  temperature: 0,
  maxOutputTokens: 100,
  maxRetries: 0,
  messages: [{ role: "user", content: [{ type: "image", image }, { type: "text", text: question }] }],
});
const say = (what, value) => console.log(`${what}: ${typeof value === "string" ? value : JSON.stringify(value)}`);

say("chat", (await generateText(ask("Describe the picture."))).text);

let text = "";
const stream = streamText(ask("What is on the left?"));
for await (const part of stream.textStream) text += part;
say("streamed", text);
say("streamed tokens", (await stream.usage).outputTokens);

const schema = z.object({ shape: z.enum(["square", "star"]), color: z.enum(["blue", "orange"]) });
say("structured", (await generateObject({ ...ask("What is on the left?"), schema })).object);

let last;
for await (const part of streamObject({ ...ask("What is on the left?"), schema }).partialObjectStream) last = part;
say("streamed structured", last);

const painted = [];
const paint = tool({
  description: "Paints a shape.",
  inputSchema: schema,
  execute: async (wanted) => {
    painted.push(wanted);
    return "Done.";
  },
});
const first = { toolChoice: { type: "tool", toolName: "paint" } };
const { steps } = await generateText({
  ...ask("Paint it."),
  tools: { paint },
  prepareStep: ({ stepNumber }) => (stepNumber ? { toolChoice: "none" } : first),
  stopWhen: stepCountIs(2),
});
say("tools", painted);
say("steps", steps.map((step) => step.finishReason));

const values = ["a blue square", "a blue star", "seven"];
const { embeddings } = await embedMany({ model: opsin.embeddingModel("opsin-mini"), values });
say("embedded", embeddings.map((one) => one.length));
