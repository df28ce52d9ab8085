"""Each family in a directory with the files of its published repository: as published, saved again by transformers 5,
and as people come to have it. transformers on the very directory is the oracle."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.open_model import open_model
from opsin_plugins.spec import ModelSpec, SpecError
from opsin_server.api.sampling_defaults import SamplingDefaults, read_sampling_defaults
from opsin_server.text.encode_prompt import PromptEncoder
from support import published
from support.conversations import CONVERSATIONS, Conversation, encoded, fitting
from support.inputs import their_inputs
from support.local_server import LocalServer
from support.repositories import directories
from support.repositories.base import Repository
from support.repositories.catalogue import repositories
from support.served import Served
from support.talk import GALLERY, MINI, gallery_messages
from support.transformers_reading import TransformersReading

TOKENS = 12
NAMES = [name for name, repository in repositories().items() if repository.config and repository.family != "qwen"]
REFUSES_SYSTEM = "mistralai/Mistral-7B-Instruct-v0.3"  # (the server puts the text into the first turn)


def made(name: str, folder: Path) -> tuple[Repository, Any, Path]:
    """The repository, its model, and the directory that holds it."""
    repository = repositories()[name]
    model = directories.make_model(repository)
    return repository, model, directories.write(repository, model, folder / "published")


def reading(repository: Repository, directory: Path) -> TransformersReading:
    return TransformersReading(directory, repository.processor, repository.strings)


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_is_read_and_answers_as_in_transformers(name: str, tmp_path: Path) -> None:
    repository, _, directory = made(name, tmp_path)
    theirs = reading(repository, directory)
    assert_same(repository, theirs)
    assert_same(repository, reading(repository, theirs.save(tmp_path / "saved again")))


def assert_same(repository: Repository, theirs: TransformersReading) -> None:
    ours = LocalServer(theirs.directory, repository.options)
    conversations = fitting(ours.encoder)
    if repository.name == REFUSES_SYSTEM:
        del conversations["told"]
    for conversation in conversations.values():
        assert_same_prompt(ours, theirs, conversation)
    assert_same_settings(repository, ours, theirs)
    for kind in {"turns", "pictures"} & set(conversations):
        assert_same_answer(ours, theirs, conversations[kind])
    for text in repository.ends:
        assert_ends_at(ours, theirs, text)


def assert_same_prompt(ours: LocalServer, theirs: TransformersReading, conversation: Conversation) -> None:
    """Ids, and what the model is given of pictures; pixels within 2 of 255."""
    prompt = encoded(ours.encoder, conversation)
    expected = theirs.inputs(conversation.messages, conversation.images)
    assert prompt.ids.tolist() == expected["input_ids"][0].tolist()
    for key, value in their_inputs(ours.spec, prompt).items():
        if key == "pixel_values":
            assert_close(value, expected[key], ours.spec)
        elif key != "cross_attention_mask" or expected[key].numel():
            assert torch.equal(value, expected[key].to(value.dtype)), key


def assert_close(pixels: torch.Tensor, expected: torch.Tensor, spec: ModelSpec) -> None:
    assert spec.vision is not None
    assert pixels.numel() == expected.numel()
    difference = (pixels.reshape(expected.shape) - expected).abs().max() * max(spec.vision.std)
    assert difference <= 2 / 255 + 1e-6


def assert_same_settings(repository: Repository, ours: LocalServer, theirs: TransformersReading) -> None:
    """Answers end at least where `generate` stops, and exactly where the repository means them to."""
    ends = set(ours.encoder.ends)
    assert ends >= theirs.ends
    assert {ours.encoder.tokenizer.token_text(i) for i in ends} == set(repository.ends)
    config = GenerationConfig.from_pretrained(theirs.directory)
    said = {name: getattr(config, name, None) for name in ("temperature", "top_p", "top_k", "repetition_penalty")}
    assert ours.sampling == SamplingDefaults(**{name: value for name, value in said.items() if value is not None})
    assert ours.sampling == SamplingDefaults(**repository.sampling)


def assert_same_answer(ours: LocalServer, theirs: TransformersReading, conversation: Conversation) -> None:
    """Greedy, and all else as generation_config.json says."""
    inputs = theirs.inputs(conversation.messages, conversation.images)
    drawn, tokenizer = theirs.generate(inputs, TOKENS), ours.encoder.tokenizer
    count = next((n for n, i in enumerate(drawn) if i in ours.encoder.ends), len(drawn))
    answer = ours.ask(conversation.messages, temperature=0, max_tokens=TOKENS, logprobs=True)
    (choice,), expected = answer["choices"], drawn[:count]
    assert choice["finish_reason"] == ("length" if count == TOKENS else "stop")
    assert choice["message"]["content"] == theirs.text(expected)
    shown = [list(tokenizer.token_bytes(i)) for i in expected if not tokenizer.is_special(i)]
    assert [token["bytes"] for token in choice["logprobs"]["content"]] == shown
    assert answer["usage"]["completion_tokens"] == count
    assert answer["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]


def assert_ends_at(ours: LocalServer, theirs: TransformersReading, text: str) -> None:
    """A model that wants nothing but this token has said all."""
    end, messages = ours.encoder.tokenizer.token_id(text), CONVERSATIONS["text"].messages
    answer = ours.ask(messages, temperature=0, max_tokens=TOKENS, logit_bias={str(end): 100})
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["message"]["content"] == ""
    if end in theirs.ends:
        assert theirs.generate(theirs.inputs(messages, []), TOKENS, sequence_bias={(end,): 100.0}) == [end]


# ----------------------------------------------------------------------------------- as people have it


@pytest.mark.parametrize("name", list(repositories()))
def test_the_cache_and_what_a_training_leaves_change_nothing(name: str, tmp_path: Path) -> None:
    repository, _, directory = made(name, tmp_path)
    expected = what_is_read(directory, repository)
    snapshot = directories.in_hub_cache(directory, name, tmp_path / "hub")
    assert what_is_read(snapshot, repository) == expected
    with pytest.raises(SpecError, match=rf"entry of the Hub's cache: give its snapshot, {re.escape(str(snapshot))}"):
        read_model_files(snapshot.parents[1])
    assert what_is_read(directories.after_training(directory, tmp_path / "trained"), repository) == expected
    if name in NAMES:
        assert_other_savings(repository, directory, tmp_path, expected)


def assert_other_savings(repository: Repository, directory: Path, folder: Path, expected: dict[str, Any]) -> None:
    """By an older transformers, into the same folder, under this version's own names of weights."""
    older = directories.saved_by_4_57(repository, directory, folder / "older")
    assert what_is_read(older, repository) == expected
    theirs = reading(repository, directory)
    over = theirs.save(shutil.copytree(directory, folder / "over"))
    assert what_is_read(over, repository) == expected
    theirs.model.save_pretrained(over, save_original_format=False)
    assert what_is_read(over, repository) == expected


def what_is_read(directory: Path, repository: Repository) -> dict[str, Any]:
    """All that an answer follows from, but for the weights' values."""
    model = open_model(directory, options=repository.options)
    encoder = PromptEncoder(model.files, model.architecture, model.spec)
    found: dict[str, Any] = {
        "spec": model.spec,
        "ends": encoder.ends,
        "sampling": read_sampling_defaults(model.files.generation),
        "markers": encoder.tokenizer.marker_ids,
    }
    for kind, conversation in fitting(encoder).items():
        prompt = encoded(encoder, conversation)
        found[kind] = (prompt.ids.tolist(), [item.pixels.tobytes() for item in prompt.items])
    return found


def test_weights_have_the_published_names(tmp_path: Path) -> None:
    for name in NAMES:
        folder = published.CONFIGS / name.rpartition("/")[2]
        if not folder.is_dir():
            continue
        listed = {pattern(key) for key in published.tensors(folder.name)}
        assert {pattern(key) for key in read_model_files(made(name, tmp_path / folder.name)[2]).tensors} == listed


def pattern(key: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", key)


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.2-11B-Vision-Instruct", "HuggingFaceTB/SmolVLM-256M-Instruct"])
def test_class_defaults_that_transformers_wrote_down_are_no_advice(name: str, tmp_path: Path) -> None:
    """Without a generation_config.json, version 5 makes one of an old config.json: greedy, and top_k 50."""
    repository, _, directory = made(name, tmp_path)
    (directory / "generation_config.json").unlink()
    again = reading(repository, directory).save(tmp_path / "again")
    assert read_model_files(again).generation["_from_model_config"]
    ours = LocalServer(again, repository.options)
    assert ours.sampling == SamplingDefaults()
    assert set(ours.encoder.ends) >= reading(repository, again).ends


def test_opsin_mini_saved_again_answers_as_before(tmp_path: Path) -> None:
    again = TransformersReading(MINI, "Qwen2VLProcessor").save(tmp_path / "again")
    before, after = LocalServer(MINI), LocalServer(again)
    for row in GALLERY[::4]:
        answers = [
            server.ask(gallery_messages(row), temperature=0, max_tokens=24)["choices"][0] for server in (before, after)
        ]
        assert answers[0]["message"] == answers[1]["message"]
        assert answers[0]["finish_reason"] == answers[1]["finish_reason"] == "stop"


@pytest.fixture
def serve() -> Any:
    servers: list[Served] = []

    def start(*arguments: str) -> Served:
        servers.append(Served(*arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.discard()


def test_opsin_serve_with_a_snapshot_that_was_trained_in(serve: Callable[..., Served], tmp_path: Path) -> None:
    """The console script: what it says, and what it answers."""
    name = "Qwen/Qwen2.5-VL-3B-Instruct"
    repository, _, directory = made(name, tmp_path)
    trained = directories.after_training(directory, tmp_path / "trained")
    snapshot = directories.in_hub_cache(trained, name, tmp_path / "hub")
    server = serve(str(snapshot), "--max-context", "400")
    for row in (
        r"ends with +<\|im_end\|>, <\|endoftext\|>",
        r"sampling +temperature 1e-06, repetition_penalty 1.05 \(generation_config.json\)",
        "not read +adapter_model.safetensors, optimizer.pt, ",
    ):
        assert re.search(rf"^{row}", server.stderr, re.MULTILINE), server.stderr
    theirs, conversation = reading(repository, directory), CONVERSATIONS["pictures over turns"]
    drawn = theirs.generate(theirs.inputs(conversation.messages, conversation.images), TOKENS)
    answer = server.client().chat.completions.create(
        model=name, messages=conversation.messages, temperature=0, max_tokens=TOKENS
    )
    assert answer.choices[0].message.content == theirs.text(drawn)
    server.wait_idle()
    server.close()
