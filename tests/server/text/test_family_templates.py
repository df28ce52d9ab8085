"""The template that a family brings for directories without one writes what the published ones write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opsin_plugins.loading.open_model import open_model
from opsin_server.text.encode_prompt import PromptEncoder
from support.conversations import CONVERSATIONS, Conversation, encoded
from support.repositories import directories
from support.repositories.base import Repository
from support.repositories.catalogue import repositories
from support.talk import assistant, system, user

ORDINARY = [*CONVERSATIONS.values()]
PICTURES = [conversation for conversation in ORDINARY if conversation.images]
CASES: dict[str, list[Conversation]] = {
    "Qwen/Qwen2-VL-2B-Instruct": ORDINARY,
    "Qwen/Qwen2.5-VL-3B-Instruct": ORDINARY,
    "Qwen/Qwen3-VL-2B-Instruct": ORDINARY,
    # Beside text alone it tells the model what day it is.
    "meta-llama/Llama-3.2-11B-Vision-Instruct": PICTURES,
    "mistral-community/pixtral-12b": [*ORDINARY, CONVERSATIONS["pictures over turns"].told("Be brief.")],
    # Where nothing is said it tells the model who it is.
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": [
        CONVERSATIONS["told"],
        *(c.told("Be brief.") for c in ORDINARY if c is not CONVERSATIONS["told"]),
    ],
    "llava-hf/llava-1.5-7b-hf": ORDINARY,
    "llava-hf/llava-v1.6-mistral-7b-hf": ORDINARY,
    "HuggingFaceTB/SmolVLM-256M-Instruct": ORDINARY,
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": ORDINARY,
    "HuggingFaceM4/Idefics3-8B-Llama3": ORDINARY,
}


def encoder(directory: Path) -> PromptEncoder:
    model = open_model(directory)
    return PromptEncoder(model.files, model.architecture, model.spec)


def write(repository: Repository, folder: Path) -> Path:
    return directories.write(repository, directories.make_model(repository), folder / "model")


def without_template(directory: Path) -> Path:
    (directory / "chat_template.json").unlink()
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}))
    return directory


@pytest.mark.parametrize("name", CASES)
def test_prompts_are_those_of_the_published_template(name: str, tmp_path: Path) -> None:
    directory = write(repositories()[name], tmp_path)
    published = encoder(directory)
    own = encoder(without_template(directory))
    assert own.template is not published.template
    for conversation in CASES[name]:
        assert encoded(own, conversation).ids.tolist() == encoded(published, conversation).ids.tolist()


PIXTRAL = "mistralai/Pixtral-12B-2409"


@pytest.fixture(scope="module")
def pixtral(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    return encoder(write(repositories()[PIXTRAL], tmp_path_factory.mktemp("pixtral")))


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("a")], "<s>[INST]a[/INST]"),
        ([user("a"), assistant("b "), user("c")], "<s>[INST]a[/INST]b</s>[INST]c[/INST]"),
        ([system("S"), user("a")], "<s>[INST]S\n\na[/INST]"),
        ([system("S"), user("a"), assistant("b"), user("c")], "<s>[INST]a[/INST]b</s>[INST]S\n\nc[/INST]"),
        ([user("a"), user("b"), assistant("c"), user("d")], "<s>[INST]a\n\nb[/INST]c</s>[INST]d[/INST]"),
    ],
)
def test_mistrals_third_version(pixtral: PromptEncoder, messages: list[dict], expected: str) -> None:
    """The system's text opens the last question, blanks behind answers go, neighbours of one role are one turn."""
    assert encoded(pixtral, Conversation(messages)).ids.tolist() == pixtral.tokenizer.encode(expected)
