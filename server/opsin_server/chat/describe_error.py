"""What is wrong with a client's JSON, in a sentence."""

from __future__ import annotations

from pydantic_core import ErrorDetails

from opsin_server.chat.fields import STATED, UNSUPPORTED
from opsin_server.chat.messages import TAGS
from opsin_server.errors import BadRequest


def describe(error: ErrorDetails) -> BadRequest:
    """OpenAI's shape: a sentence, the path of the field, and a code where a program may care."""
    kind, context = error["type"], error.get("ctx", {})
    within = context.get("param")
    param = path((*error["loc"], *(() if within in (None, "") else (within,))))
    if kind == "json_invalid":
        return BadRequest(f"The body is not valid JSON: {_in_words(context['error'])}", code="invalid_json")
    if kind == "extra_forbidden":
        return BadRequest(f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter")
    if kind == "missing":
        return BadRequest(f"Missing required parameter: '{param}'", param=param, code="missing_required_parameter")
    if kind == UNSUPPORTED:
        return BadRequest(f"Unsupported value for '{param}': {error['msg']}", param=param, code=UNSUPPORTED)
    if kind == STATED:
        return BadRequest(error["msg"], param=param)
    if not param:
        return BadRequest("The body must be a JSON object", code="invalid_type")
    reason = _sentence(error["msg"])
    if kind.startswith(("greater_than", "less_than")):
        reason += f", not {str(error['input'])[:40]}"
    return BadRequest(f"Invalid value for '{param}': {reason}", param=param, code="invalid_value")


def path(location: tuple[int | str, ...]) -> str:
    """("messages", 0, "content", "~parts", 1) as messages[0].content[1]; tags are a union's alone."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step[:200]}" for step in location if step not in TAGS]
    return "".join(steps).removeprefix(".")


# Of the parser, which ends each with the place.
_WORDS = {
    "recursion limit exceeded": "its lists and objects are nested too deeply",
    "lone leading surrogate in hex escape": "a string holds half of a surrogate pair",
    "unexpected end of hex escape": "a string holds half of a surrogate pair",
    "invalid unicode code point": "it is not UTF-8",
}


def _in_words(error: str) -> str:
    what, at, place = error.rpartition(" at line ")
    return f"{_WORDS.get(what, what)}{at}{place}"


def _sentence(message: str) -> str:
    if message.startswith(("List", "Dictionary")):  # "... should have at least 1 item after validation, not 0"
        message = message.split(" after validation")[0]
    message = message.replace("Input should be ", "it must be ")
    return message[0].lower() + message[1:]
