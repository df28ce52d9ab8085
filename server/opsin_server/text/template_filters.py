"""The filters and tests that a chat template may use: Jinja's, but for those whose work nothing bounds.

All take the render's budget from the context; what a filter makes is checked as all values are, and what it gives one
by one is checked one by one. Filters for HTML (`urlize`, `striptags`, `xmlattr`) and for wrapping, which are programs
of their own and no part of a prompt, do not exist here: a template that names one does not compile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, cast

from jinja2 import pass_context
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment
from jinja2.tests import TESTS

from opsin_server.text import template_strings as strings
from opsin_server.text.template_budget import PLACE, Budget, TemplateStopError, check_numbers
from opsin_server.text.template_formatting import percent
from opsin_server.text.trusted import inherit, joined, own

BUDGET = "the budget of this render"  # a variable that no template can name
MAX_DIGITS = 100  # of `round`
MAX_SORTED = 10_000
MAX_INDENT = 100  # characters, of `tojson`

JINJAS = """abs attr batch count d default e escape first float int items last length list map max min
    reject rejectattr reverse safe select selectattr slice string truncate unique wordcount"""
LISTING = "batch list max min slice unique"  # take a string for the list of its characters
COMPARING = "in == eq equalto != ne > gt greaterthan ge >= < lt lessthan <= le"

Function = Callable[..., Any]


def budget_of(context: Context) -> Budget:
    return cast("Budget", context.resolve_or_missing(BUDGET))


def bounded_filters() -> dict[str, Function]:
    jinjas = {name: _bounded(_from_jinja(FILTERS[name], name in LISTING.split())) for name in JINJAS.split()}
    return {**jinjas, **{name: _bounded(function) for name, function in _OWN.items()}}


def bounded_tests() -> dict[str, Function]:
    """Comparisons look at the clock, since `select` makes many of them."""
    tests = cast("dict[str, Function]", TESTS)
    return tests | {name: _bounded(_from_jinja(tests[name])) for name in COMPARING.split()}


def _bounded(function: Function) -> Function:
    """function: of the context, the value, and what stands behind the filter's name."""

    @pass_context
    @wraps(function)
    def bounded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        check_numbers(args)
        check_numbers(kwargs.values())
        budget = budget_of(context)
        budget.check()
        made = function(context, value, *args, **kwargs)
        return budget.checked(inherit(made, value, args, list(kwargs.values())) if type(made) is str else made)

    return bounded


def _sorting(name: str) -> Function:
    """Calls Python code for each value while no one looks at the clock: for 10,000 values 10 ms."""
    function = _from_jinja(FILTERS[name])

    def called(context: Context, values: Any, *args: Any, **kwargs: Any) -> Any:
        values = values if isinstance(values, Mapping) else list(values)
        if len(values) > MAX_SORTED:
            raise TemplateStopError(f"the chat template sorts {len(values)} values; the limit is {MAX_SORTED}")
        return function(context, values, *args, **kwargs)

    return called


def _from_jinja(function: Function, lists: bool = False) -> Function:
    """Jinja's own function, which is marked with what it is given in front of the value."""
    given = {"context": "self", "eval_context": "eval_ctx", "environment": "environment"}
    mark = getattr(function, "jinja_pass_arg", None)

    def called(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        if lists and isinstance(value, str):
            budget_of(context).check(PLACE * len(value))
        if mark is None:
            return function(value, *args, **kwargs)
        first = context if mark.name == "context" else getattr(context, given[mark.name])
        return function(first, value, *args, **kwargs)

    return called


def _method(name: str) -> Function:
    """A filter that is a method of strings."""
    method = strings.METHODS[name]

    def called(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        return method(budget_of(context), str(value), *args, **kwargs)

    return called


def _center(context: Context, value: Any, width: int = 80) -> str:
    return strings.METHODS["center"](budget_of(context), str(value), width)


def _replace(context: Context, value: Any, old: Any, new: Any, count: int | None = None) -> str:
    return strings.replace(budget_of(context), str(value), str(old), str(new), -1 if count is None else count)


def _title(context: Context, value: Any) -> str:
    """Words begin behind other characters than for `str.title`."""
    text = str(value)
    return strings.recased(text, FILTERS["title"](text))


def _format(context: Context, value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise TypeError("format takes values by place or by name")
    return percent(budget_of(context), str(value), kwargs or args)


def _join(context: Context, values: Iterable[Any], between: Any = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        values = map(make_attrgetter(context.environment, attribute), values)
    texts = list(map(str, values)) if isinstance(values, list) else map(str, values)
    return strings.join(budget_of(context), str(between), texts)


def _sum(context: Context, values: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    """Step by step, since sums of lists are lists."""
    environment = cast("SandboxedEnvironment", context.environment)
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    for value in values:
        start = environment.call_binop(context, "+", start, value)
    return start


def _round(context: Context, value: Any, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > MAX_DIGITS:
        raise TemplateStopError(f"the chat template rounds to {precision} digits; the limit is {MAX_DIGITS}")
    return FILTERS["round"](value, precision, method)


def _indent(context: Context, value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """Lines are ended by "\\n", whatever ended them before, as Jinja's own filter does."""
    budget = budget_of(context)
    blanks = width if isinstance(width, str) else own(" " * width)
    start, *others = strings.splitlines(budget, value + "\n")
    budget.check(len(value) + (len(others) + 2) * len(blanks))
    lines = [start, *(blanks + line if line or blank else line for line in others)]
    shown = joined(lines, own("\n"))
    return blanks + shown if first else shown


def _to_json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the HTML escapes of Jinja's own filter: what a model was trained on."""
    widths = [indent if isinstance(indent, int) else len(indent or ""), *map(len, separators or ())]
    if max(widths) > MAX_INDENT:
        raise TemplateStopError(f"the chat template writes JSON with {max(widths)} blanks; the limit is {MAX_INDENT}")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is None:
        return encoder.encode(value)  # in C: its length follows from the value's weight
    pieces, size, budget = [], 0, budget_of(context)
    for piece in encoder.iterencode(value):
        size += len(piece)
        budget.check(size)
        pieces.append(piece)
    return "".join(pieces)


_OWN: dict[str, Function] = {
    **{name: _sorting(name) for name in ("dictsort", "groupby", "sort")},
    "capitalize": _method("capitalize"),
    "center": _center,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "lower": _method("lower"),
    "replace": _replace,
    "round": _round,
    "sum": _sum,
    "title": _title,
    "tojson": _to_json,
    "trim": _method("strip"),
    "upper": _method("upper"),
}
