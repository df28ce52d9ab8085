"""`%` and `str.format` for chat templates: piece by piece, each width bounded, the template's own text kept as such."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from jinja2.sandbox import SandboxedEnvironment, SandboxedFormatter

from opsin_server.text.template_budget import Budget, TemplateStopError
from opsin_server.text.template_strings import join
from opsin_server.text.trusted import inherit, is_own, own

MAX_WIDTH = 1000  # of one number or text: a width, or digits behind the point

_CONVERSION = re.compile(r"%(?:\(([^()]*)\))?([-#0 +]*)(\*|\d*)(?:\.(\*|\d*))?[hlL]?(.?)", re.DOTALL)
_NUMBER = re.compile(r"\d+")


def percent(budget: Budget, form: str, values: Any) -> str:
    """`form % values`, as Python has it, but for widths that are themselves values (`*`)."""
    arguments = list(values) if isinstance(values, tuple) else [values]
    named = not isinstance(values, tuple | str) and hasattr(values, "__getitem__")
    pieces: list[str] = []
    at = used = size = 0
    for found in _CONVERSION.finditer(form):
        pieces.append(form[at : found.start()])
        at, key = found.end(), found[1]
        if found[5] == "%":
            piece: str = own("%")
        else:
            if key is None:
                if used == len(arguments):
                    raise TypeError("not enough arguments for format string")
                value, used = arguments[used], used + 1
            elif named:
                value, used = values[key], len(arguments)
            else:
                raise TypeError("format requires a mapping")
            piece = _converted(found, value)
        size += len(piece) + len(pieces[-1])
        budget.check(size)
        pieces.append(piece)
    if used < len(arguments) and not named:
        raise TypeError("not all arguments converted during string formatting")
    return join(budget, own(""), [*pieces, form[at:]])


def _converted(found: re.Match[str], value: Any) -> str:
    if "*" in (found[3], found[4]):
        raise TemplateStopError("the chat template formats with a width of '*', which is not allowed")
    _check_widths(found[2] + found[3], found[4] or "")
    if found[5] == "s" and isinstance(value, str) and not found[3] and found[4] is None:
        return value
    flags, width, digits = found[2], found[3], "" if found[4] is None else f".{found[4]}"
    return inherit(f"%{flags}{width}{digits}{found[5]}" % (value,), value)


def formatted(
    environment: SandboxedEnvironment, budget: Budget, form: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """`form.format(*args, **kwargs)`, but for fields within a field's format."""
    formatter, automatic, size = SandboxedFormatter(environment), 0, 0
    pieces: list[str] = []
    keep = own if is_own(form) else str  # braces are written twice: where a character stood is not told
    for literal, field, spec, conversion in formatter.parse(form):
        piece = ""
        if field is not None:
            if field[:1] in ("", ".", "["):
                field, automatic = f"{automatic}{field}", automatic + 1
            value, _ = formatter.get_field(field, args, kwargs)
            piece = _field(formatter.convert_field(value, cast("Any", conversion)), spec or "")
        size += len(literal) + len(piece)
        budget.check(size)
        pieces += keep(literal), piece
    return join(budget, own(""), pieces)


def _field(value: Any, spec: str) -> str:
    if "{" in spec:
        raise TemplateStopError("the chat template formats with a field within a field, which is not allowed")
    _check_widths(spec)
    return value if isinstance(value, str) and not spec else inherit(format(value, spec), value)


def _check_widths(*specs: str) -> None:
    for spec in specs:
        for number in _NUMBER.findall(spec):
            if len(number) > len(str(MAX_WIDTH)) + 1 or int(number) > MAX_WIDTH:
                raise TemplateStopError(
                    f"the chat template formats to a width of {number[:20]}; the limit is {MAX_WIDTH}"
                )
