"""Answers held to a schema, through the real SDK, of the embedded model and its pictures."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from support.served_checks import works
from support.snippets import blocks
from support.talk import MODEL_NAME, sample, user

ROOT = Path(__file__).parents[2]
QUESTION = [user(sample("cat.png"), "What is this?")]


SHAPES: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "shape",
        "schema": {
            "type": "object",
            "properties": {"shape": {"enum": ["cat", "dog", "square"]}},
            "required": ["shape"],
            "additionalProperties": False,
        },
    },
}


class Seen(BaseModel, extra="forbid"):
    kind: Literal["cat", "dog", "drawing"]
    legs: Literal[2, 4]
    tags: Annotated[list[Literal["fur", "tail"]], Field(max_length=2)]


def test_a_pydantic_model_comes_back(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model=MODEL_NAME, messages=QUESTION, response_format=Seen, max_tokens=200)
    assert isinstance(answer.choices[0].message.parsed, Seen)
    assert answer.choices[0].finish_reason == "stop"


class Dated(BaseModel):
    taken_at: datetime.datetime
    after: datetime.timedelta
    price: float
    pages: int


def test_what_a_model_knows_nothing_of_ends_and_is_read(client: openai.OpenAI) -> None:
    for temperature in (0, 2):
        answer = client.chat.completions.parse(
            model=MODEL_NAME, messages=QUESTION, response_format=Dated, temperature=temperature, seed=1, max_tokens=300
        )
        assert isinstance(answer.choices[0].message.parsed, Dated)


def test_streamed_it_is_the_same_text(client: openai.OpenAI) -> None:
    asked = {"model": MODEL_NAME, "messages": QUESTION, "temperature": 0, "max_tokens": 200}
    with client.chat.completions.stream(**asked, response_format=Seen) as stream:
        streamed = stream.get_final_completion().choices[0].message
    whole = client.chat.completions.parse(**asked, response_format=Seen).choices[0].message
    assert streamed.content == whole.content
    assert streamed.parsed == whole.parsed


def test_vllms_names_for_it(client: openai.OpenAI) -> None:
    def asked(**fields: object) -> str:
        answer = client.chat.completions.create(
            model=MODEL_NAME, messages=QUESTION, temperature=0, max_tokens=200, extra_body=fields
        )
        assert answer.choices[0].finish_reason == "stop"
        return answer.choices[0].message.content or ""

    assert asked(guided_choice=["cat", "dog"]) in ("cat", "dog")
    assert re.fullmatch(r"[a-f]{4}\d", asked(structured_outputs={"regex": r"[a-f]{4}\d"}))
    assert re.fullmatch("ab+c", asked(structured_outputs={"grammar": 'root ::= "a" "b" "b"? "c"'}))
    assert set(json.loads(asked(guided_json=json.dumps(Seen.model_json_schema())))) == set(Seen.model_fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"structured_outputs": {"json": {"type": "circle"}}}, "structured_outputs.json"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"if": {}}}}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        (
            {"structured_outputs": {"json": {}, "whitespace_pattern": "(("}},
            "structured_outputs.whitespace_pattern",
        ),
        ({"guided_json": {}, "guided_whitespace_pattern": "["}, "guided_whitespace_pattern"),
    ],
)
def test_what_cannot_be_kept_to_is_refused_by_name(served, fields: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        served.client().chat.completions.create(model=MODEL_NAME, messages=QUESTION, extra_body=fields)
    assert str(caught.value.param).startswith(param)
    works(served)


def test_several_choices_share_a_prompt(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL_NAME, messages=QUESTION, n=8, temperature=1.5, seed=3, max_tokens=150, response_format=SHAPES
    )
    found = [json.loads(choice.message.content or "")["shape"] for choice in answer.choices]
    assert set(found) <= {"cat", "dog", "square"}
    assert len(found) == 8
    usage = answer.usage
    assert usage is not None
    alone = client.chat.completions.create(model=MODEL_NAME, messages=QUESTION, max_tokens=1).usage
    assert alone is not None
    assert usage.prompt_tokens == alone.prompt_tokens


def test_the_documents_snippets_print_what_they_show(served) -> None:
    found = blocks(ROOT / "docs/structured-output.md")
    code = "".join(block.code for block in found).replace("http://127.0.0.1:8000", served.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == " ".join(block.prints or "" for block in found).split(), done.stderr
