"""`continue_final_message`: the prompt ends with the assistant's text, and the answer is only what follows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_encoder import FakeEncoder
from fake_engine import FakeEngine, Script
from running_server import RunningServer
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from opsin_server.text.tokenizer import Tokenizer

CHAT: dict[str, Any] = {
    "model": "opsin-test",
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "A red"}],
}


@pytest.mark.parametrize("stream", [False, True])
def test_the_prompt_is_continued_and_the_answer_is_what_is_new(start: Any, stream: bool) -> None:
    server = start(Script(b" circle"))
    options = {**CHAT, "stream": stream, "extra_body": {"continue_final_message": True}}
    answer = server.client().chat.completions.create(**options)
    text = "".join(c.choices[0].delta.content or "" for c in answer) if stream else answer.choices[0].message.content
    assert text == " circle"
    assert server.services.encoder.continued is True
    server.client().chat.completions.create(model="opsin-test", messages=CHAT["messages"][:1])
    assert server.services.encoder.continued is False


def sentencepiece(folder: Path) -> Tokenizer:
    """In the manner of Llama 2: a word's blank belongs to its token, and the first one of a text is not shown."""
    vocabulary = ["<unk>", *"▁ Aacdeirlx.", "▁red", "▁circle", "cle"]
    backend = Backend(models.BPE({token: i for i, token in enumerate(vocabulary)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken("<|end|>", normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@pytest.mark.parametrize(("word", "continued", "alone"), [("▁circle", " circle.", "circle."), ("cle", "cle.", "cle.")])
def test_the_blank_before_the_first_new_word_stays(tmp_path: Path, word: str, continued: str, alone: str) -> None:
    encoder = FakeEncoder()
    encoder.tokenizer = tokenizer = sentencepiece(tmp_path)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = [vocabulary[word], vocabulary["."]]
    assert tokenizer.decode(tokens) == alone
    server = RunningServer(FakeEngine(Script(tokens)), encoder=encoder)
    try:
        client = server.client()
        answer = client.chat.completions.create(**CHAT, extra_body={"continue_final_message": True}, logprobs=True)
        assert answer.choices[0].message.content == continued
        assert [entry.token for entry in answer.choices[0].logprobs.content] == [word.replace("▁", " "), "."]
        answer = client.chat.completions.create(model="opsin-test", messages=CHAT["messages"][:1])
        assert answer.choices[0].message.content == alone
    finally:
        server.close()
