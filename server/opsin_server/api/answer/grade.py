"""What a grader says of a sample: its texts filled in, and compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from pydantic_core import from_json

from opsin_server.api.schemas.graders import RunGrader
from opsin_server.errors import BadRequest

VARIABLE = re.compile(r"\{\{\s*([^{}\s]{1,256})\s*\}\}")
MOST_CHARACTERS = 2**21  # of a text that is filled in
OPERATIONS: Mapping[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


class _Unknown(Exception):
    """A variable that is none."""


def grade(run: RunGrader) -> tuple[float, dict[str, bool]]:
    """The reward, and what went wrong, with which it is 0. Raises BadRequest for a text that grows beyond measure."""
    sample: dict[str, Any] = {"output_text": run.model_sample}
    with suppress(ValueError):  # what is no JSON is wrong only where JSON is asked for
        sample["output_json"] = from_json(run.model_sample, allow_inf_nan=False)
    known = {"sample": sample, "item": run.item or {}}
    grader = run.grader
    try:
        text, reference = (_filled(getattr(grader, name), known, name) for name in ("input", "reference"))
    except _Unknown as unknown:
        is_json = str(unknown).startswith("sample.output_json") and "output_json" not in sample
        return 0.0, {"sample_parse_error" if is_json else "invalid_variable_error": True}
    return float(OPERATIONS[grader.operation](text, reference)), {}


def _filled(template: str, known: Mapping[str, Any], name: str) -> str:
    parts, left, at = [], MOST_CHARACTERS, 0
    for found in VARIABLE.finditer(template):
        parts += [template[at : found.start()], _text(_value(found[1], known))]
        at = found.end()
        left -= len(parts[-1])
        if left < 0:
            message = f"'grader.{name}' has more than {MOST_CHARACTERS:,} characters with its variables filled in"
            raise BadRequest(message, param=f"grader.{name}")
    return "".join([*parts, template[at:]])


def _value(path: str, known: Any) -> Any:
    for step in path.split("."):
        if isinstance(known, Mapping) and step in known:
            known = known[step]
        elif isinstance(known, list) and step.isdecimal() and len(step) < 10 and int(step) < len(known):
            known = known[int(step)]
        else:
            raise _Unknown(path)
    return known


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
