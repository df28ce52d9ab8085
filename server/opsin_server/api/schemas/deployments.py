"""Azure's way to ask: the address names the model, and the body may name it or not."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

NamedByAddress = Annotated[
    str, BeforeValidator(lambda value: "" if value is None else value, json_schema_input_type=str | None)
]
