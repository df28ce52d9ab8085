"""Where a directory keeps its chat template: the place that transformers' processor or tokenizer would take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, Qwen2VLProcessor

from opsin_plugins.loading.files import read_model_files
from opsin_plugins.spec import SpecError
from support import tiny, words

PLACES = (
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "chat_templates/tool_use.jinja",
    "tokenizer_config.json",
)


@pytest.fixture(scope="module", params=["qwen2_vl", "llama"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.save(tiny.FAMILIES[request.param].make(), tmp_path_factory.mktemp(request.param))
    words.write_tokenizer(folder, request.param)
    return folder


def place(folder: Path, places: dict[str, Any]) -> None:
    """A template's text names where it stands."""
    for name in PLACES:
        path = folder / name
        if path.suffix == ".jinja":
            path.unlink(missing_ok=True)
            if name in places:
                path.parent.mkdir(exist_ok=True)
                path.write_text(places[name])
            continue
        document = json.loads(path.read_text()) if path.is_file() else {}
        document.pop("chat_template", None)
        if name in places:
            document["chat_template"] = places[name]
        if document or path.is_file():
            path.write_text(json.dumps(document))
        if name == "chat_template.json" and name not in places:
            path.unlink(missing_ok=True)


def theirs(folder: Path) -> Any:
    """The template that transformers would render with, or None; raises what it raises."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if "vision_config" in json.loads((folder / "config.json").read_text()):
        found = Qwen2VLProcessor.get_processor_dict(folder)[0].get("chat_template")
        if found is not None:
            if isinstance(found, list):
                found = {entry["name"]: entry["template"] for entry in found}
            return found["default"] if isinstance(found, dict) else found
    return None if tokenizer.chat_template is None else tokenizer.get_chat_template()


def forms(name: str) -> st.SearchStrategy[Any]:
    if name.endswith(".jinja"):
        return st.just(name)
    named = [{"name": "default", "template": name}, {"name": "rag", "template": "no"}]
    if name == "tokenizer_config.json":
        return st.sampled_from([name, named])
    return st.just(name)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_place_that_counts_is_transformers(directory: Path, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(PLACES)))
    if {"chat_template.json", "chat_templates/tool_use.jinja"} <= chosen:
        chosen.discard("chat_templates/tool_use.jinja")  # (transformers refuses these two together)
    if "chat_templates/tool_use.jinja" in chosen:
        chosen.add("chat_template.jinja")
    place(directory, {name: data.draw(forms(name)) for name in sorted(chosen)})
    expected = theirs(directory)
    found = read_model_files(directory).chat_template
    if expected is None and chosen:  # a language model's tokenizer does not ask the processor's files: the last resort
        assert found in ("chat_template.json", "processor_config.json")
    else:
        assert found == expected


def test_named_templates_without_a_default_are_refused(directory: Path) -> None:
    place(directory, {"tokenizer_config.json": [{"name": "rag", "template": "x"}]})
    with pytest.raises(SpecError, match="none that is named 'default': rag"):
        read_model_files(directory)
    place(directory, {})
