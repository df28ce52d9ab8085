"""A language model's GGUF and its mmproj file, served as a user serves them: pictures in, counted tokens and
transformers' own answer out."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration

from opsin_plugins.families.qwen2_like import CHATML
from opsin_plugins.loading.files import read_model_files
from opsin_server.text.encode_prompt import PromptEncoder
from support import oracle, tiny
from support.encoded import ask_greedily, encoded
from support.local_server import LocalServer
from support.mmproj_files import Pair, write_pair
from support.served import OPSIN, Served
from support.talk import GALLERY, MINI, assistant, gallery_messages, user

TOKENS, VOCABULARY = 10, {"vocab_size": 400}
PICTURES = [oracle.picture(0, 60, 45), oracle.picture(1, 25, 60)]
FAMILIES: Mapping[str, Callable[[], Any]] = {
    "llava": lambda: tiny.llava(sizes=VOCABULARY),
    "qwen2_vl": lambda: tiny.qwen2_vl(**VOCABULARY),
    "qwen2_5_vl": lambda: tiny.qwen2_5_vl(vision={"patch_size": 14, "window_size": 112}, **VOCABULARY),
    "idefics3": lambda: tiny.idefics3(**VOCABULARY),
    "llava.pixtral": lambda: tiny.pixtral("llama", VOCABULARY),
}


@dataclass
class Family:
    pair: Pair
    ours: oracle.Ours
    encoder: PromptEncoder
    server: Served


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    pair = write_pair(tmp_path_factory.mktemp(request.param), FAMILIES[request.param](), {"blk": Kind.Q8_0})
    server = Served(
        str(pair.model), "--mmproj", str(pair.mmproj), "--served-model-name", "tiny", "--max-context", "400"
    )
    try:
        ours = oracle.with_declared(pair.model, pair.mmproj)
        encoder = PromptEncoder(read_model_files(pair.model, mmproj=pair.mmproj), ours.architecture, ours.spec)
        yield Family(pair, ours, encoder, server)
        server.wait_idle()
        server.close()
    finally:
        server.discard()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_answers_and_counts_are_transformers_own(family: Family, count: int) -> None:
    pictures = [Image.fromarray(one) for one in PICTURES[:count]]
    turns = {0: [user("hello there")], 1: [user(*pictures, "what is it?")]}
    messages = turns.get(count) or [user(pictures[0], "this?"), assistant("yes"), user("that?", pictures[1])]
    answer = ask_greedily(family.server, messages, TOKENS)
    prompt = encoded(family.encoder, messages, PICTURES[:count])
    assert answer.usage.prompt_tokens == len(prompt.ids)
    visual = sum(span.length for span in prompt.expanded.spans)
    assert answer.usage.prompt_tokens_details.image_tokens == visual
    assert (visual > 0) is (count > 0)
    expected, tokenizer = oracle.their_tokens(family.pair.theirs, family.ours, prompt, TOKENS), family.encoder.tokenizer
    got = [token.bytes for token in answer.choices[0].logprobs.content]
    assert got == [list(tokenizer.token_bytes(i)) for i in expected if not tokenizer.is_special(i)]


def test_a_real_model_sees_the_same_in_its_files(tmp_path: Path) -> None:
    """opsin-mini, with the tower in 8 bits and the decoder in floats. The rule by which its tokenizer cuts text is none
    of llama.cpp's; of these questions they make the same tokens."""
    theirs = Qwen2VLForConditionalGeneration.from_pretrained(MINI, dtype=torch.float32)
    template = (MINI / "chat_template.jinja").read_text()
    pair = write_pair(tmp_path, theirs, {"v.blk": Kind.Q8_0}, template, MINI)
    server = LocalServer(pair.model, mmproj=pair.mmproj)
    for row in GALLERY:
        answer = server.ask(gallery_messages(row), max_tokens=48, temperature=0)
        assert answer["choices"][0]["message"]["content"] == row["model"], row


def test_check_says_what_the_pair_takes_and_the_decoder_alone_sees_nothing(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, FAMILIES["qwen2_vl"](), template=CHATML)
    whole = run("check", str(pair.model), "--mmproj", str(pair.mmproj))
    assert "qwen2_vl: " in whole
    assert "largest image" in whole
    alone = run("check", str(pair.model))
    assert "qwen2: " in alone
    assert "largest image" not in alone
    with Served(str(pair.model), "--max-context", "200") as server:
        assert server.stderr.count("--mmproj FILE") == 1


def run(*arguments: str) -> str:
    done = subprocess.run([OPSIN, *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
