"""Where a checkpoint directory keeps its chat template: transformers' places, in its order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from opsin_plugins.loading.read_json import read_json, read_text
from opsin_plugins.spec import SpecError

Json = Mapping[str, object]


def find_chat_template(directory: Path, processor: Json, tokenizer_config: Json, *, vision: bool) -> str | None:
    """The template, or None where the directory has none. Raises SpecError for named templates without a default.

    A model with vision is read by transformers' processor: processor_config.json, then chat_template.json, then
    chat_template.jinja with the folder chat_templates; what none of them has comes from tokenizer_config.json. A
    language model is read by its tokenizer, which asks chat_template.jinja first, and does not know the other two.
    """
    jinja = _jinja_files(directory)
    legacy = read_json(directory / "chat_template.json").get("chat_template")
    tokenizers = tokenizer_config.get("chat_template")
    places: dict[str, object] = {
        "processor_config.json": processor.get("chat_template"),
        "chat_template.json": legacy,
        "chat_template.jinja": jinja,
        "tokenizer_config.json": tokenizers,
    }
    if not vision:
        order = ("chat_template.jinja", "tokenizer_config.json", "chat_template.json", "processor_config.json")
        places = {name: places[name] for name in order}
    return next((_default(value, name) for name, value in places.items() if value), None)


def _jinja_files(directory: Path) -> dict[str, str]:
    """chat_template.jinja as "default", and the others of the folder chat_templates by their names."""
    found = {path.stem: path for path in sorted(directory.glob("chat_templates/*.jinja"))}
    if (single := directory / "chat_template.jinja").is_file():
        found["default"] = single
    return {name: read_text(path) for name, path in found.items()}


def _default(value: object, place: str) -> str:
    """One template, or the default of several: a mapping, or a list of objects with name and template."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, Mapping)}
    if isinstance(value, Mapping) and isinstance(default := value.get("default"), str):
        return default
    names = ", ".join(map(str, value)) if isinstance(value, Mapping) else repr(value)[:100]
    raise SpecError(f"{place} has chat templates, but none that is named 'default': {names}")
