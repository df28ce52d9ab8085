"""A chat template is a stranger's program: it runs in Jinja's sandbox, under a budget of CPU time and output.

Stopped here: output over the limit, loops (also those that write nothing), recursion, strings and numbers that grow
by doubling, large repeat counts and widths. Not stopped, since no Python code runs meanwhile: one call into C that is
large by itself (`replace` and `join` on long strings, a width inside a format string). The budget is CPU time of the
rendering thread, so that a busy machine fails no honest template; other threads go on meanwhile.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, cast

import jinja2
from jinja2 import ext, nodes, parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from opsin_plugins.spec import SpecError
from opsin_server.errors import OpsinError

MAX_SECONDS = 0.5
MAX_OUTPUT = 2**20  # characters, beside the conversation's own
MAX_NUMBER = 10**6  # as an argument: a width, a count
MAX_BITS = 4096  # of a product or power

BUDGET = "the budget of this render"  # a variable that no template can name


class TemplateStopError(OpsinError):
    """The template left its bounds: its fault, not the request's."""

    code = "chat_template_limit"


class RefusalError(jinja2.TemplateError):
    """`raise_exception` was called: the template's own words about the conversation."""


class Budget:
    def __init__(self, size: int) -> None:
        self.size = size
        self._end = time.thread_time() + MAX_SECONDS
        self._look = time.monotonic() + MAX_SECONDS

    def check(self, size: int = 0) -> None:
        if size > self.size:
            raise TemplateStopError(f"the chat template writes more than {self.size} characters")
        # The CPU clock is a system call (0.7 us); no thread gets more CPU time than there is time (0.06 us).
        if (now := time.monotonic()) > self._look:
            if (left := self._end - time.thread_time()) < 0:
                raise TemplateStopError(f"the chat template runs for more than {MAX_SECONDS} s")
            self._look = now + left

    def checked(self, value: Any) -> Any:
        self.check(len(value) if isinstance(value, str | list | tuple) else 0)
        return value


class Program:
    """A compiled template. Threads may share it: a render's state lives in its context."""

    def __init__(self, source: str) -> None:
        """Raises SpecError for a template that does not parse."""
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, _Generation])
        try:
            tree = _Instrument().visit(environment.parse(source))
            code = cast("Any", environment.compile(tree))
            self._template = jinja2.Template.from_code(environment, code, environment.globals)
        except (jinja2.TemplateError, RecursionError) as error:
            raise SpecError(f"the chat template does not compile: {error}") from error

    def run(self, variables: Mapping[str, Any], size: int = 0) -> str:
        """size: characters of the conversation. Raises TemplateStopError, RefusalError, or what the template met."""
        budget = Budget(MAX_OUTPUT + size)
        context = self._template.new_context({**variables, BUDGET: budget})
        pieces, written = [], 0
        for piece in self._template.root_render_func(context):
            pieces.append(piece)
            written += len(piece)
            budget.check(written)
        return "".join(pieces)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}
        self.filters |= {"tojson": _to_json, _TICK: _tick, _CONCAT: _concat}
        self.globals.pop("lipsum")  # random text, any amount of it
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.check()
        _check_numbers(args, kwargs)
        return budget.checked(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget(context)
        if operator != "+":
            _check_growth(budget, operator, left, right)
        return budget.checked(super().call_binop(context, operator, left, right))


class _Generation(ext.Extension):
    """`{% generation %}` marks what the assistant wrote, for training masks; its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own declaration)

    def parse(self, parser: parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Instrument(NodeTransformer):
    """Every turn of a loop looks at the clock, and `~` at the size of what it joins."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (Jinja's name)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filter(nodes.Const(0), _TICK)))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes), _CONCAT)


_TICK, _CONCAT = "opsin: tick", "opsin: concat"  # filters that no template can name


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


def _budget(context: Context) -> Budget:
    return cast("Budget", context.resolve_or_missing(BUDGET))


@jinja2.pass_context  # also keeps Jinja from folding these two at compile time
def _tick(context: Context, value: object) -> None:
    _budget(context).check()


@jinja2.pass_context
def _concat(context: Context, values: list[Any]) -> Any:
    return _budget(context).checked("".join(map(str, values)))


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # carries Jinja's own marks along
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_numbers(args[1:], kwargs)
        return function(*args, **kwargs)

    return bounded


def _check_numbers(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if type(value) is int and abs(value) > MAX_NUMBER:
            raise TemplateStopError(f"the chat template asks for {value} of something; the limit is {MAX_NUMBER}")


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


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the HTML escapes of Jinja's own filter: what a model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> str:
    raise RefusalError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # the server's local time, as templates expect
