// OpenAI's SDK for Node: OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none node with_openai.mjs PICTURE.png
import { readFileSync } from "node:fs";
import OpenAI, { toFile } from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI();
const model = "opsin-mini";
const url = "data:image/png;base64," + readFileSync(process.argv[2], "base64");
const ask = (question) => [
  { role: "user", content: [{ type: "image_url", image_url: { url } }, { type: "text", text: question }] },
];
const say = (what, value) => console.log(`${what}: ${typeof value === "string" ? value : JSON.stringify(value)}`);

const chat = await client.chat.completions.create({ model, temperature: 0, messages: ask("Describe the picture.") });
say("chat", chat.choices[0].message.content);

let text = "";
const stream = await client.chat.completions.create({
  model, temperature: 0, stream: true, stream_options: { include_usage: true }, messages: ask("What is on the left?"),
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta.content ?? "";
  if (chunk.usage) say("streamed tokens", chunk.usage.completion_tokens);
}
say("streamed", text);

const Seen = z.object({ shape: z.enum(["square", "star"]), color: z.enum(["blue", "orange"]) });
const parsed = await client.chat.completions.parse({
  model, temperature: 0, max_completion_tokens: 100, messages: ask("What is on the left?"),
  response_format: zodResponseFormat(Seen, "seen"),
});
say("structured", parsed.choices[0].message.parsed);

const painted = [];
const tools = [{
  type: "function",
  function: {
    name: "paint", strict: true, parse: JSON.parse, parameters: z.toJSONSchema(Seen),
    function: (wanted) => { painted.push(wanted); return "Done."; },
  },
}];
const runner = client.chat.completions.runTools(
  { model, temperature: 0, max_completion_tokens: 100, messages: ask("Paint it."), tools, tool_choice: { type: "function", function: { name: "paint" } } },
);
await runner.done();
say("tools", painted);

const input = [
  { role: "user", content: [{ type: "input_image", image_url: url, detail: "auto" }, { type: "input_text", text: "Describe the picture." }] },
];
const response = await client.responses.create({ model, temperature: 0, input });
say("response", response.output_text);
const held = await client.responses.parse({ model, max_output_tokens: 100, input, text: { format: zodTextFormat(Seen, "seen") } });
say("structured response", held.output_parsed);

const { data } = await client.embeddings.create({ model, input: ["a blue square", "a blue star", "seven"] });
say("embedded", data.map((one) => one.embedding.length));

const row = { messages: [...ask("Name the shapes."), { role: "assistant", content: "Square, star." }] };
const rows = (JSON.stringify(row) + "\n").repeat(10);
const file = await client.files.create({ file: await toFile(Buffer.from(rows), "rows.jsonl"), purpose: "fine-tune" });
let job = await client.fineTuning.jobs.create({
  model, training_file: file.id, suffix: "node",
  method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 8, batch_size: 2, learning_rate_multiplier: 2 } } },
});
while (!job.finished_at) {
  await new Promise((resolve) => setTimeout(resolve, 200));
  job = await client.fineTuning.jobs.retrieve(job.id);
}
say("job", job.status);
const tuned = await client.chat.completions.create({
  model: job.fine_tuned_model, temperature: 0, messages: ask("Name the shapes."),
});
say("tuned", tuned.choices[0].message.content);
say("deleted", [await client.models.delete(job.fine_tuned_model), await client.files.delete(file.id)].map((one) => one.deleted));
