"""Field types shared by the request models. Every field acts, is ignored because it cannot change an answer, or passes
only at values that change nothing; `api.reference` shows which, in docs/api.md."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo
from pydantic_core import PydanticCustomError, PydanticKnownError

UNSUPPORTED = "unsupported_parameter"
STATED = "stated"
NOT_FINITE = "it must not hold NaN or infinity, which are not JSON"


def _absent(value: Any) -> None:
    if value is not None:
        raise PydanticKnownError("extra_forbidden")


class Strict(BaseModel):
    """No coercion, no NaN or infinity, and no input repeated in errors. A field that is unknown is refused, unless it
    is null: null stands for an optional field that was left out."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )
    __pydantic_extra__: dict[str, Annotated[None, BeforeValidator(_absent)]]


def unsupported(given: object, accepted: str, param: str | None = None) -> PydanticCustomError:
    """For a validator to raise at a value that Opsin knows and does not act on yet. `accepted`: what to send."""
    context = {"given": shown(given), "accepted": accepted, "param": param}
    return PydanticCustomError(UNSUPPORTED, "{given} is not supported here: {accepted}", context)


def wrong(message: str, param: str | int | None = None) -> PydanticCustomError:
    """For a validator to raise at a wrong value; `param` where the validator stands above the field at fault."""
    return PydanticCustomError("wrong", "{message}", {"message": message, "param": param})


def stated(sentence: str, param: str) -> PydanticCustomError:
    """For a validator to raise where OpenAI has a sentence of its own, which clients look for."""
    return PydanticCustomError(STATED, "{sentence}", {"sentence": sentence, "param": param})


def missing(param: str) -> PydanticCustomError:
    """For a validator to raise where a field that others may leave out is needed."""
    return PydanticCustomError("missing", "needed", {"param": param})


class Neutral:
    """The validator of a field that passes at these values, which change nothing, and is refused at any other. why:
    what is said of that."""

    def __init__(self, accepted: tuple[object, ...], why: str = "") -> None:
        self.accepted, self._why = accepted, f": {why}" if why else ""
        self._words = " or ".join(shown(value) for value in (None, *accepted))

    def __call__(self, value: Any, info: ValidationInfo) -> None:
        if value is not None and not any(_same(value, accepted) for accepted in self.accepted):
            raise unsupported(
                value, f"'{(info.field_name or '').removesuffix('_')}' must be {self._words} or left out{self._why}"
            )


class Unread:
    """The validator of a field that cannot change an answer: any JSON value passes, and none is kept."""

    def __call__(self, value: Any) -> None:
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise wrong(NOT_FINITE) from None


def only(*accepted: object, why: str = "") -> BeforeValidator:
    """A field that would change the answer and passes only where it does not: at these values and at null."""
    return BeforeValidator(Neutral(accepted, why))


Ignored = Annotated[None, BeforeValidator(Unread())]


def whole(value: Any) -> Any:
    """16.0 as 16: many languages have one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(whole)


def shown(value: object) -> str:
    """A value as its sender wrote it, in at most 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _same(value: object, accepted: object) -> bool:
    """Equal as JSON: true is not 1, 0.0 is 0."""
    return isinstance(value, bool) == isinstance(accepted, bool) and value == accepted
