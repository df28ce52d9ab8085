"""`opsin compose` and then `opsin serve`, as a user runs them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from PIL import Image

from opsin_plugins.loading.files import read_model_files
from opsin_plugins.spec import Expanded
from opsin_server.api.answer.submit import to_prompt
from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.text.encode_prompt import PromptEncoder
from support import halves, oracle
from support.served import OPSIN, Served
from support.talk import user

PICTURE, TOKENS = oracle.picture(0, 40, 30), 12


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([OPSIN, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_a_composed_model_answers_a_picture(tmp_path: Path) -> None:
    vision = halves.encoder("clip", tmp_path / "clip").directory
    language = halves.language("qwen2", tmp_path / "qwen2", vocab_size=151, tie_word_embeddings=True).directory
    out = tmp_path / "out"
    both = ("--vision", vision, "--fusion", "scatter", "--projector", "mlp2x", "--language", language)
    done = run("compose", *both, out)
    assert done.returncode == 0, done.stderr
    assert f"\nopsin serve {out}\n" in done.stdout
    again = run("compose", *both, out)
    assert (again.returncode, again.stderr) == (1, f"opsin: {out} is not empty: give a new directory\n")

    messages = [user("what is it? ", Image.fromarray(PICTURE))]
    server = Served(str(out), "--served-model-name", "tiny")
    try:
        asked = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": TOKENS, "logprobs": True}
        answer = server.client().chat.completions.create(**asked, extra_body={"ignore_eos": True})
        server.close()
    finally:
        server.discard()
    assert answer.usage.prompt_tokens_details.image_tokens == 16
    assert json.loads((out / "config.json").read_text())["image_seq_length"] == 16
    assert [t.bytes for t in answer.choices[0].logprobs.content] == _their_tokens(out, messages)


def _their_tokens(out: Path, messages: list[dict]) -> list[list[int]]:
    """What transformers writes, as bytes; special tokens write none."""
    import transformers

    ours, theirs = oracle.load(out), transformers.LlavaForConditionalGeneration.from_pretrained(out)
    encoder = PromptEncoder(read_model_files(out), ours.architecture, ours.spec)
    request = ChatRequest.model_validate({"model": "tiny", "messages": messages})
    made = encoder.encode(to_prompt(request, None), [PICTURE])
    expanded, rope = Expanded(made.ids, made.spans), ours.spec.decoder.rope
    prompt = oracle.Prompt(expanded, made.items, made.positions, made.delta, rope)
    tokens = oracle.their_tokens(theirs, ours, prompt, TOKENS)
    return [list(encoder.tokenizer.token_bytes(i)) for i in tokens if not encoder.tokenizer.is_special(i)]
