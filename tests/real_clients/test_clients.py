"""Other projects' clients as they are installed. The scripts beside this file are also how to use each of them.
opsin-mini knows what is in a picture and never learned JSON: what is held to a schema is valid, and not always true."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.clients
Said = Callable[..., dict[str, str]]

DESCRIBED, LEFT = "A blue square and an orange star.", "A blue square."
TOKENS = "4"  # of the latter
SHAPES, COLORS = ("square", "star"), ("blue", "orange")
WIDTHS = [192, 192, 192]


def seen(line: str) -> bool:
    """Is it one thing in the form that the scripts ask for?"""
    value = json.loads(line)
    (value,) = value if isinstance(value, list) else [value]
    return set(value) == {"shape", "color"} and value["shape"] in SHAPES and value["color"] in COLORS


def test_openai_for_node(said: Said) -> None:
    lines = said("with_openai.mjs")
    assert lines["chat"] == lines["response"] == DESCRIBED
    assert (lines["streamed"], lines["streamed tokens"]) == (LEFT, TOKENS)
    assert seen(lines["structured"])
    assert seen(lines["structured response"])
    assert seen(lines["tools"])
    assert json.loads(lines["embedded"]) == WIDTHS
    assert (lines["job"], lines["tuned"], lines["deleted"]) == ("succeeded", "Square, star.", "[true,true]")


def test_vercels_ai_sdk(said: Said) -> None:
    lines = said("with_ai_sdk.mjs")
    assert (lines["chat"], lines["streamed"], lines["streamed tokens"]) == (DESCRIBED, LEFT, TOKENS)
    assert seen(lines["structured"])
    assert seen(lines["streamed structured"])
    assert seen(lines["tools"])
    assert json.loads(lines["steps"]) == ["tool-calls", "stop"]
    assert json.loads(lines["embedded"]) == WIDTHS


def test_langchain(said: Said) -> None:
    lines = said("with_langchain.py")
    assert (lines["chat"], lines["streamed"], lines["streamed tokens"]) == (DESCRIBED, LEFT, TOKENS)
    assert seen(lines["json_schema"])
    assert seen(lines["function_calling"])
    assert seen(lines["tools"])
    assert (lines["after"], lines["response"]) == ("stop", DESCRIBED)
    assert json.loads(lines["embedded"]) == WIDTHS


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm(said: Said, provider: str) -> None:
    lines = said("with_litellm.py", provider)
    assert (lines["chat"], lines["streamed"], lines["streamed tokens"]) == (DESCRIBED, LEFT, TOKENS)
    assert seen(lines["structured"])
    assert seen(lines["tools"])


def test_instructor(said: Said) -> None:
    lines = said("with_instructor.py")
    assert set(lines) == {"tool_call", "tools_strict", "json_schema_mode", "streamed"}
    assert all(map(seen, lines.values()))
