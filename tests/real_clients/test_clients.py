"""Other projects' clients as they are installed. The scripts beside this file are also how to use each of them.
opsin-mini knows what is in a picture and never learned JSON: what is held to a schema is valid, and not always true."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.clients
Said = Callable[[str], dict[str, str]]

DESCRIBED, LEFT = "A blue square and an orange star.", "A blue square."


def is_seen(value: dict) -> bool:
    return (
        set(value) == {"shape", "color"}
        and value["shape"] in ("square", "star")
        and value["color"] in ("blue", "orange")
    )


def test_openai_for_node(said: Said) -> None:
    lines = said("with_openai.mjs")
    assert lines["chat"] == lines["response"] == DESCRIBED
    assert (lines["streamed"], lines["streamed tokens"]) == (LEFT, "4")
    assert is_seen(json.loads(lines["structured"]))
    assert is_seen(json.loads(lines["structured response"]))
    (painted,) = json.loads(lines["tools"])
    assert is_seen(painted)
    assert json.loads(lines["embedded"]) == [192, 192, 192]
    assert (lines["job"], lines["tuned"], lines["deleted"]) == ("succeeded", "Square, star.", "[true,true]")
