"""Raw prompts on the shared server, against transformers' own continuation."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import torch

from support.served import PLAIN, Served
from support.talk import MODEL_NAME, sample, user


def test_what_follows_a_text_is_what_transformers_continues(client: openai.OpenAI, oracle: Any, served: Served) -> None:
    prompts = ["What is", "A red circle and", "<|im_start|>user"]
    ids = [oracle.tokenizer(prompt)["input_ids"] for prompt in prompts[:2]]
    made = [oracle.model.generate(torch.tensor([one]), max_new_tokens=8, do_sample=False)[0, len(one) :] for one in ids]
    expected = [oracle.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in made]
    options: Any = {"model": MODEL_NAME, "temperature": 0, "max_tokens": 8}
    texts = client.completions.create(prompt=prompts, logprobs=0, **options)
    assert [choice.text for choice in texts.choices[:2]] == expected
    assert "".join(texts.choices[0].logprobs.tokens) == expected[0]
    assert [choice.text for choice in client.completions.create(prompt=ids, **options).choices] == expected
    streamed = ["", ""]
    for chunk in client.completions.create(prompt=prompts[:2], echo=True, stream=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [prompt + text for prompt, text in zip(prompts[:2], expected, strict=True)]
    with httpx.Client(base_url=served.url, **PLAIN) as http:
        plain = http.post("/tokenize", json={"prompt": prompts[2]}).json()["tokens"]
        assert plain == oracle.plain.encode(prompts[2], add_special_tokens=False).ids
        assert http.post("/detokenize", json={"tokens": plain}).json()["prompt"] == prompts[2]


def test_how_likely_a_prompt_is_is_what_transformers_says(client: openai.OpenAI, oracle: Any) -> None:
    """As tools ask that compare the likelihood of answers, and of a chat with its picture."""
    ids = oracle.tokenizer("What is the color of the circle?")["input_ids"]
    logged = oracle.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    mine = logged[:-1].gather(1, torch.tensor(ids)[1:, None]).squeeze(1)
    answer = client.completions.create(
        model=MODEL_NAME, prompt=ids, echo=True, logprobs=1, max_tokens=1, temperature=0
    ).choices[0]
    assert answer.logprobs.token_logprobs[0] is None
    torch.testing.assert_close(torch.tensor(answer.logprobs.token_logprobs[1:-1]), mine, atol=1e-3, rtol=0)
    best = [max(top.values()) for top in answer.logprobs.top_logprobs[1:-1]]
    torch.testing.assert_close(torch.tensor(best), logged[:-1].amax(1), atol=1e-3, rtol=0)
    chat = client.chat.completions.create(
        model=MODEL_NAME,
        messages=[user("What is this?", sample("red_circle.png"))],
        max_tokens=1,
        extra_body={"prompt_logprobs": 0},
    ).model_dump()
    said = chat["prompt_logprobs"]
    assert len(said) == chat["usage"]["prompt_tokens"]
    assert sum(one is None for one in said) == 1 + chat["usage"]["prompt_tokens_details"]["image_tokens"]
    assert all(one["logprob"] <= 0 and one["rank"] >= 1 for entry in said if entry for one in entry.values())


def test_a_chat_can_be_asked_by_its_tokens(client: openai.OpenAI, served: Served) -> None:
    messages = [user("Hello!")]
    options: Any = {"model": MODEL_NAME, "temperature": 0, "max_tokens": 24}
    chat = client.chat.completions.create(messages=messages, **options)
    with httpx.Client(base_url=served.url, **PLAIN) as http:
        tokens = http.post("/tokenize", json={"model": MODEL_NAME, "messages": messages}).json()["tokens"]
        talk = [*messages, {"role": "assistant", "content": "Hi"}]
        whole = http.post("/tokenize", json={"messages": talk, "add_generation_prompt": False}).json()["tokens"]
        assert http.post("/detokenize", json={"tokens": whole}).json()["prompt"].endswith("Hi<|im_end|>\n")
        placeholder = http.post("/tokenize", json={"prompt": "<|image_pad|>", "parse_special": True}).json()["tokens"]
        refused = http.post("/v1/completions", json={"model": MODEL_NAME, "prompt": placeholder}).json()["error"]
        assert refused["param"] == "prompt"
        assert "stands for a picture" in refused["message"]
    assert len(tokens) == chat.usage.prompt_tokens
    assert client.completions.create(prompt=tokens, **options).choices[0].text == chat.choices[0].message.content
