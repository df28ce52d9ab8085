"""Every family with random weights, served as a user serves it: pictures in, counted tokens and transformers' own
answer out. (What its answers mean is opsin-mini's part: test_chat, test_parity.)"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import openai
import pytest
from PIL import Image

from opsin_plugins.loading.files import read_model_files
from opsin_server.text.encode_prompt import PromptEncoder
from support import oracle, tiny, words
from support.encoded import ask_greedily, encoded
from support.served import Served
from support.talk import assistant, user

TOKENS = 12
PICTURES = [oracle.picture(0, 40, 30), oracle.picture(1, 25, 60), oracle.picture(2, 12, 70)]
TEXT_TEMPLATE = "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}{% endfor %}"


@dataclass
class Family:
    name: str
    theirs: object
    ours: oracle.Ours
    encoder: PromptEncoder
    server: Served


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    name: str = request.param
    theirs = tiny.FAMILIES[name].make()
    directory = tiny.save(theirs, tmp_path_factory.mktemp(name))
    words.write_tokenizer(directory, name)
    if not tiny.FAMILIES[name].preprocessor and name != "qwen":  # a language model's form of prompts is its directory's
        (directory / "chat_template.jinja").write_text(TEXT_TEMPLATE)
    options = tiny.FAMILIES[name].options
    flags = [text for pair in options.items() for text in ("--model-option", "=".join(pair))]
    server = Served(str(directory), "--served-model-name", "tiny", "--max-context", "400", *flags)
    try:
        ours = oracle.load(directory, options=options)
        encoder = PromptEncoder(read_model_files(directory, options), ours.architecture, ours.spec)
        yield Family(name, theirs, ours, encoder, server)
        server.wait_idle()
        server.close()
    finally:
        server.discard()


def pictures(count: int) -> list[Image.Image]:
    return [Image.fromarray(p) for p in PICTURES[:count]]


def takes_images(family: Family) -> bool:
    return family.ours.spec.vision is not None


CONVERSATIONS = {
    "caption": (1, lambda p: [user(*p)]),
    "question": (1, lambda p: [user(*p, "what is it?")]),
    "several in one turn": (3, lambda p: [user(p[0], "and", p[1], p[2], "?")]),
    "over turns": (2, lambda p: [user(p[0], "this?"), assistant("yes"), user("that?", p[1])]),
    "text alone": (0, lambda p: [user("hello there")]),
}


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_answers_and_counts_are_transformers_own(family: Family, kind: str) -> None:
    count, make = CONVERSATIONS[kind]
    if count and not takes_images(family):
        with pytest.raises(openai.BadRequestError, match="takes text only"):
            ask_greedily(family.server, make(pictures(count)), TOKENS)
        return
    answer = ask_greedily(family.server, make(pictures(count)), TOKENS)
    prompt = encoded(family.encoder, make(pictures(count)), PICTURES[:count])
    assert answer.usage.prompt_tokens == len(prompt.ids)
    spans = sum(span.length for span in prompt.expanded.spans)
    assert answer.usage.prompt_tokens_details.image_tokens == spans
    assert (spans > 0) is (count > 0)
    expected = oracle.their_tokens(family.theirs, family.ours, prompt, TOKENS)
    got, tokenizer = [t.bytes for t in answer.choices[0].logprobs.content], family.encoder.tokenizer
    assert got == [list(tokenizer.token_bytes(i)) for i in expected if not tokenizer.is_special(i)]
