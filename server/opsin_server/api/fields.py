"""Field types shared by the request models: strict, and refusing by name what would change the answer."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo
from pydantic_core import PydanticCustomError

UNSUPPORTED = "unsupported_parameter"


class Strict(BaseModel):
    """No coercion, no unknown fields, no NaN or infinity, and no input repeated in errors."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )


def unsupported(given: object, accepted: str, param: str | None = None) -> PydanticCustomError:
    """For a validator to raise at a value that Opsin knows and does not act on yet. `accepted`: what to send."""
    context = {"given": shown(given), "accepted": accepted, "param": param}
    return PydanticCustomError(UNSUPPORTED, "{given} is not supported here: {accepted}", context)


def wrong(message: str, param: str | None = None) -> PydanticCustomError:
    """For a validator to raise at a wrong value; `param` where the validator stands above the field at fault."""
    return PydanticCustomError("wrong", "{message}", {"message": message, "param": param})


def only(*accepted: object) -> BeforeValidator:
    """A field that passes at these values, which change nothing, and is refused by name at any other."""
    words = " or ".join(shown(a) for a in accepted)

    def check(value: Any, info: ValidationInfo) -> Any:
        if not any(_same(value, a) for a in accepted):
            raise unsupported(value, f"'{info.field_name}' must be {words} or left out")
        return value

    return BeforeValidator(check)


def shown(value: object) -> str:
    """A value as its sender wrote it, in at most 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _same(value: object, accepted: object) -> bool:
    """Equal as JSON: true is not 1, 0.0 is 0."""
    return isinstance(value, bool) == isinstance(accepted, bool) and value == accepted
