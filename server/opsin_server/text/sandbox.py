"""A chat template is a stranger's program: it runs in Jinja's sandbox, under a budget, and what it writes is marked.

Between two looks at the budget stands one step of bounded work: a turn of a loop, a comparison, an operator, a call, a
filter. What may be called is listed: functions and macros, methods of strings (`template_strings`) and those of
lists and dictionaries that only read. Values are weighed when they are made, so that no later step is large
(`template_budget`). Other threads go on meanwhile.

The strings in the template's source, and the text between its tags, are `Trusted` when it runs: see there.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import jinja2
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import MAX_RANGE
from jinja2.utils import Cycler, Joiner, Namespace

from opsin_plugins.spec import SpecError
from opsin_server.text import template_strings as strings
from opsin_server.text.template_budget import MAX_BITS, Budget, TemplateStopError, check_numbers
from opsin_server.text.template_filters import BUDGET, bounded_filters, bounded_tests, budget_of
from opsin_server.text.template_formatting import formatted, percent
from opsin_server.text.template_instrument import INSTRUMENTS, InstrumentedEnvironment
from opsin_server.text.trusted import inherit, joined

MAX_SOURCE = 2**18  # characters; the longest that are published have a tenth of it
MAX_WORDS = 2**10  # characters of a refusal or of a date's form


class RefusalError(jinja2.TemplateError):
    """`raise_exception` was called: the template's own words about the conversation."""


class Program:
    """A compiled template. Threads may share it: a render's state lives in its context."""

    def __init__(self, source: str) -> None:
        """Raises SpecError for a template that does not parse."""
        if len(source) > MAX_SOURCE:
            raise SpecError(f"the chat template has {len(source)} characters; the limit is {MAX_SOURCE}")
        try:
            self._template = _Sandbox().program(source)
        except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError) as error:
            raise SpecError(f"the chat template does not compile: {error}") from error

    def run(self, variables: Mapping[str, Any], size: int = 0) -> str:
        """size: characters of the conversation. Raises TemplateStopError, RefusalError, or what the template met.

        The result is a `Trusted` where the template wrote any of it.
        """
        budget = Budget(size)
        context = self._template.new_context({**variables, BUDGET: budget})
        pieces, written = [], 0
        for piece in self._template.root_render_func(context):
            pieces.append(piece)
            written += len(piece)
            budget.check(written)
        return joined(pieces)


@dataclass(frozen=True)
class _Format:
    """`str.format` of a string, until it is called."""

    form: str


class _Sandbox(InstrumentedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__()
        self.filters = INSTRUMENTS | bounded_filters()
        self.tests = cast("Any", bounded_tests())
        self.globals = {
            "cycler": Cycler,
            "dict": dict,
            "joiner": Joiner,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "range": _range,
            "strftime_now": _strftime_now,
        }
        self._functions = frozenset(self.globals.values())

    def wrap_str_format(self, value: Any) -> Any:
        """Jinja's hook for `str.format`, which must not be reached but by `call`."""
        if isinstance(value, types.BuiltinMethodType) and isinstance(value.__self__, str):
            if value.__name__ == "format":
                return _Format(value.__self__)
            if value.__name__ == "format_map":
                return self.undefined(name="format_map")
        return None

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        budget.check()
        given = {name: value for name, value in kwargs.items() if name not in _JINJAS}
        check_numbers(args)
        check_numbers(given.values())
        if isinstance(obj, _Format):
            return budget.checked(formatted(self, budget, obj.form, args, given))
        bound = isinstance(obj, types.BuiltinMethodType | types.MethodType)
        if bound and isinstance(obj.__self__, str):
            return budget.checked(strings.call(budget, obj.__self__, obj.__name__, args, given))
        if bound:
            allowed = obj.__name__ in _READING.get(type(obj.__self__), ())
        else:
            allowed = isinstance(obj, _CALLED) or obj in self._functions
        if not allowed:
            name = getattr(obj, "__name__", type(obj).__name__)
            raise TemplateStopError(f"the chat template calls {name}, which is not allowed")
        if obj is Cycler or (isinstance(obj, Macro) and (obj.catch_varargs or obj.catch_kwargs)):
            budget.checked((args, given))  # the template gets them again, as lists
        return budget.checked(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = budget_of(context)
        if operator == "%" and isinstance(left, str):
            return budget.checked(percent(budget, left, right))
        if operator in ("*", "**"):
            _check_growth(budget, operator, left, right)
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            budget.check(len(left) + len(right))
        return budget.checked(super().call_binop(context, operator, left, right))


class _Namespace(Namespace):
    """Prints nothing of what it holds, since that may change after it has been weighed."""

    def __repr__(self) -> str:
        return "<Namespace>"


_JINJAS = ("_loop_vars", "_block_vars")  # arguments that Jinja adds to a call
_CALLED = (Cycler, Joiner, LoopContext, Macro, Undefined)  # an Undefined says what is missing
_READING: Mapping[type, tuple[str, ...]] = {
    dict: ("copy", "get", "items", "keys", "values"),
    list: ("copy", "count", "index"),
    tuple: ("count", "index"),
    Cycler: ("next", "reset"),
    LoopContext: ("changed", "cycle"),
}


def _check_growth(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Before a product or a power is computed: afterwards is too late."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MAX_BITS:
            raise TemplateStopError(f"the chat template computes a number of more than {MAX_BITS} bits")
    elif operator == "*":
        sized, times = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(sized, str | list | tuple) and isinstance(times, int):
            budget.check(len(sized) * times)


def _range(*limits: int) -> range:
    numbers = range(*limits)
    if len(numbers) > MAX_RANGE:
        raise TemplateStopError(f"the chat template counts {len(numbers)} numbers; the limit is {MAX_RANGE}")
    return numbers


def _raise_exception(message: object) -> str:
    raise RefusalError(str(message)[:MAX_WORDS])


def _strftime_now(form: str) -> str:
    if len(form) > MAX_WORDS:
        raise TemplateStopError(
            f"the chat template asks for a date in {len(form)} characters; the limit is {MAX_WORDS}"
        )
    return inherit(datetime.now().strftime(form), form)  # the server's local time, as templates expect
