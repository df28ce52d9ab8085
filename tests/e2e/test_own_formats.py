"""Repositories whose form transformers does not read: Mistral's own, and the first Qwen-VL. The same weights in a form
that it does read, or in the reference, must give the same answers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer

from opsin_plugins.loading.files import read_model_files
from opsin_plugins.spec import U8, SpecError
from opsin_server.api.sampling_defaults import SamplingDefaults
from support.conversations import CONVERSATIONS, Conversation, encoded
from support.inputs import their_inputs, whole
from support.local_server import LocalServer
from support.repositories import directories
from support.repositories.catalogue import repositories
from support.repositories.qwen import QWEN_VL_MARKS
from support.repositories.words import byte_level
from support.talk import assistant, user
from support.transformers_reading import TransformersReading

TOKENS = 12
PIXTRAL, PIXTRAL_OWN = "mistral-community/pixtral-12b", "mistralai/Pixtral-12B-2409"
SMALL, QWEN_VL = "mistralai/Mistral-Small-3.1-24B-Instruct-2503", "Qwen/Qwen-VL-Chat"
OWN_FILES = ("params.json", "tekken.json", "consolidated.safetensors")


def write(name: str, folder: Path) -> Path:
    repository = repositories()[name]
    return directories.write(repository, directories.make_model(repository), folder)


def in_order(conversation: Conversation) -> Conversation:
    """As Mistral's own programs take it: of one text and one picture, the picture first."""
    messages = []
    for message in conversation.messages:
        content = message["content"]
        if isinstance(content, list) and [part["type"] for part in content] == ["text", "image_url"]:
            content = content[::-1]
        messages.append({**message, "content": content})
    return replace(conversation, messages=messages)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mistral Small 3.1: both forms side by side."""
    return write(SMALL, tmp_path_factory.mktemp("small") / "both")


def only(files: Sequence[str], source: Path, target: Path) -> Path:
    target.mkdir()
    for name in files:
        shutil.copy(source / name, target)
    return target


def assert_same(ours: LocalServer, theirs: TransformersReading, system: str | None) -> None:
    for conversation in CONVERSATIONS.values():
        if system is not None and conversation is not CONVERSATIONS["told"]:
            conversation = conversation.told(system)
        prompt, expected = encoded(ours.encoder, conversation), in_order(conversation)
        inputs = theirs.inputs(expected.messages, expected.images)
        assert prompt.ids.tolist() == inputs["input_ids"][0].tolist()
        if conversation.images:
            mine = their_inputs(ours.spec, prompt)
            assert torch.equal(mine["image_sizes"], inputs["image_sizes"])
            assert (mine["pixel_values"] - inputs["pixel_values"]).abs().max() * 0.28 <= 2 / 255
        drawn = theirs.generate(inputs, TOKENS)
        answer = ours.ask(list(conversation.messages), temperature=0, max_tokens=TOKENS)
        assert answer["choices"][0]["message"]["content"] == theirs.text(drawn)
    assert {ours.encoder.tokenizer.token_text(i) for i in ours.encoder.ends} == {"</s>"}
    assert ours.sampling == SamplingDefaults()


def test_pixtral_as_mistral_publishes_it(tmp_path: Path) -> None:
    ours = LocalServer(write(PIXTRAL_OWN, tmp_path / "own"))
    twin = repositories()[PIXTRAL]
    assert_same(ours, TransformersReading(write(PIXTRAL, tmp_path / "twin"), twin.processor, twin.strings), None)


def test_mistral_small_from_its_own_files_alone(small: Path, tmp_path: Path) -> None:
    ours = LocalServer(only(OWN_FILES, small, tmp_path / "own"))
    assert ours.spec.family == "mistral_params"
    theirs = TransformersReading(small, "PixtralProcessor")
    assert_same(ours, theirs, "Answer in one word.")  # (its template has a system message of its own)


def test_own_form_is_read_where_the_other_cannot_show_pictures(small: Path, tmp_path: Path) -> None:
    """Mistral Small 3.2 has weights in both forms, but no tokenizer.json and nothing about pictures in the other."""
    names = ("config.json", "generation_config.json", "model.safetensors.index.json")
    shards = [path.name for path in small.glob("model-*.safetensors")]
    ours = LocalServer(only((*OWN_FILES, *names, *shards), small, tmp_path / "3.2"))
    assert ours.spec.family == "mistral_params"
    assert set(ours.files.ignored) == set(shards)
    assert_same(ours, TransformersReading(small, "PixtralProcessor"), "Answer in one word.")


def test_both_forms_side_by_side_are_read_as_transformers_does(small: Path) -> None:
    files = read_model_files(small)
    assert files.config["model_type"] == "mistral3"
    assert files.ignored == ("consolidated.safetensors",)


# --------------------------------------------------------------------------------------- the first Qwen-VL


def qwen_text(messages: Sequence[dict[str, Any]], queries: int) -> str:
    """ChatML as its repository's code writes it, pictures numbered through the conversation."""
    turns, count = ["<|im_start|>system\nYou are a helpful assistant.<|im_end|>"], 0
    for message in messages:
        text = ""
        for part in [{"text": message["content"]}] if isinstance(message["content"], str) else message["content"]:
            if "text" in part:
                text += part["text"]
            else:
                count += 1
                text += f"Picture {count}: <img>{'<imgpad>' * queries}</img>\n"
        turns.append(f"<|im_start|>{message['role']}\n{text}<|im_end|>")
    return "\n".join([*turns, "<|im_start|>assistant\n"])


def qwen_pixels(image: U8, side: int) -> torch.Tensor:
    """F32 [3, side, side], 0 to 1."""
    resized = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255


def test_the_conversion_that_is_printed_makes_the_shards_of_qwen_vl(tmp_path: Path) -> None:
    """As published its weights are pytorch_model*.bin, which are refused with a command to run in their folder."""
    directory = write(QWEN_VL, tmp_path / "published")
    known = set(read_model_files(directory).tensors)
    for path in directory.glob("*.safetensors"):
        torch.save(load_file(path), path.with_suffix(".bin"))
        path.unlink()
    with pytest.raises(SpecError, match="only safetensors are read") as refused:
        read_model_files(directory)
    _, _, command = str(refused.value).partition("python -c ")
    subprocess.run([sys.executable, "-c", command.strip('"')], cwd=directory, check=True)
    assert set(read_model_files(directory).tensors) == known


def test_qwen_vl_chat(tmp_path: Path) -> None:
    """Shards as the conversion of pytorch_model*.bin makes them, ranks instead of a tokenizer.json, code beside it."""
    repository = repositories()[QWEN_VL]
    reference = directories.make_model(repository)
    ours = LocalServer(directories.write(repository, reference, tmp_path / "published"))
    tokenizer = Tokenizer.from_str(
        str(byte_level(QWEN_VL_MARKS, {}, normalizer={"type": "NFC"}).files["tokenizer.json"])
    )
    assert ours.sampling == SamplingDefaults(top_p=0.3)
    assert {ours.encoder.tokenizer.token_text(i) for i in ours.encoder.ends} == {"<|endoftext|>", "<|im_end|>"}
    assert set(ours.files.ignored) == {path.name for path in (tmp_path / "published").glob("*.bin")}
    mean, std = (torch.tensor(x)[:, None, None] for x in (ours.spec.vision.mean, ours.spec.vision.std))
    for conversation in (c for name, c in CONVERSATIONS.items() if name != "told"):
        prompt = encoded(ours.encoder, conversation)
        ids = tokenizer.encode(qwen_text(conversation.messages, 16), add_special_tokens=False).ids
        assert prompt.ids.tolist() == ids
        pixels = None
        if conversation.images:
            expected = torch.stack([qwen_pixels(image, 32) for image in conversation.images])
            mine = torch.cat([whole(item, ours.spec) for item in prompt.items]) * std + mean
            assert (mine - expected).abs().max() <= 2 / 255
            pixels = (expected - mean) / std
        drawn = reference.generate(prompt.ids[None], pixels, max_new_tokens=TOKENS)[0, len(ids) :].tolist()
        count = next((n for n, i in enumerate(drawn) if i in ours.encoder.ends), TOKENS)
        answer = ours.ask(list(conversation.messages), temperature=0, max_tokens=TOKENS, logprobs=True)
        expected_bytes = [list(ours.encoder.tokenizer.token_bytes(i)) for i in drawn[:count]]
        shown = [token["bytes"] for token in answer["choices"][0]["logprobs"]["content"]]
        assert shown == [
            b for b, i in zip(expected_bytes, drawn, strict=False) if not ours.encoder.tokenizer.is_special(i)
        ]
    for text in repository.ends:
        end = ours.encoder.tokenizer.token_id(text)
        answer = ours.ask([user("hi"), assistant("ho"), user("?")], temperature=0, logit_bias={str(end): 100})
        assert (answer["choices"][0]["finish_reason"], answer["choices"][0]["message"]["content"]) == ("stop", "")
