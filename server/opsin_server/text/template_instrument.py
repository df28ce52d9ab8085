"""What is changed in a chat template while it is compiled: its strings are marked, and it looks at its budget.

The strings in the source and the text between the tags become `Trusted`. Where Jinja's own code has no place for a look
at the budget, the tree gets one: a filter that no template can name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, cast

import jinja2
from jinja2 import compiler, ext, nodes, parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from opsin_server.text.template_budget import PLACE, Budget
from opsin_server.text.template_filters import budget_of
from opsin_server.text.trusted import joined, own


class InstrumentedEnvironment(ImmutableSandboxedEnvironment):
    """Of one template, whose strings it holds."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[ext.loopcontrols, GenerationTag],
            optimized=False,  # would fold strings into lists, where they are not marked
        )
        self.code_generator_class = Generator
        self.own_strings: list[str] = []

    def program(self, source: str) -> jinja2.Template:
        code = cast("Any", self.compile(Instrument().visit(self.parse(source))))
        return jinja2.Template.from_code(self, code, self.globals)

    def buffer_join(self, context: Context) -> Callable[[list[str]], str]:
        """What joins the output of a macro, or of a block that is kept."""
        return functools.partial(_within, budget_of(context))


class Generator(compiler.CodeGenerator):
    """Writes the template's strings as `own_strings[n]`, and joins what a macro writes within the budget."""

    def visit_Const(self, node: nodes.Const, frame: compiler.Frame) -> None:  # noqa: N802 (Jinja's name)
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(self._own(value))
        else:
            super().visit_Const(node, frame)

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return self._own("".join(group))

    def _own(self, text: str) -> str:
        strings = cast("InstrumentedEnvironment", self.environment).own_strings
        strings.append(own(text))
        return f"own_strings[{len(strings) - 1}]"

    def write_commons(self) -> None:
        super().write_commons()
        self.writeline("own_strings = environment.own_strings")
        self.writeline("concat = environment.buffer_join(context)")


class GenerationTag(ext.Extension):
    """`{% generation %}` marks what the assistant wrote, for training masks; its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own declaration)

    def parse(self, parser: parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class Instrument(NodeTransformer):
    """Puts the looks at the budget where Jinja's own code has no place for them."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (Jinja's names)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filter(nodes.Const(0), _TICK)))
        node.test = node.test and nodes.And(_filter(nodes.Const(True), _TICK), node.test)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        """Looks first, unless it only asks whether something is equal to a constant."""
        self.generic_visit(node)
        operand = node.ops[0]
        constant = isinstance(node.expr, nodes.Const) or isinstance(operand.expr, nodes.Const)
        if constant and operand.op in ("eq", "ne") and len(node.ops) == 1:
            return node
        return nodes.And(_filter(nodes.Const(True), _TICK), node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _filter(node, _CHECK)
        if not isinstance(node.arg.node if isinstance(node.arg, nodes.Neg) else node.arg, nodes.Const):
            node.arg = _filter(node.arg, _TICK)
        return node

    def visit_Call(self, node: nodes.Call | nodes.Filter | nodes.Test) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.dyn_args = node.dyn_args and _filter(node.dyn_args, _SPREAD)
        return node

    visit_Filter = visit_Test = visit_Call  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes), _CONCAT)

    def visit_List(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        stores = isinstance(node, nodes.Tuple) and node.ctx != "load"
        return node if stores or all(isinstance(item, nodes.Const) for item in node.items) else _filter(node, _CHECK)

    visit_Tuple = visit_Dict = visit_List  # noqa: N815


# Filters that no template can name.
_TICK, _CHECK, _CONCAT, _SPREAD = "opsin: tick", "opsin: check", "opsin: concat", "opsin: spread"


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


@jinja2.pass_context  # also keeps Jinja from folding these at compile time
def _tick(context: Context, value: Any) -> Any:
    budget_of(context).check()
    return value


@jinja2.pass_context
def _check(context: Context, value: Any) -> Any:
    return budget_of(context).checked(value)


@jinja2.pass_context
def _concat(context: Context, values: list[Any]) -> Any:
    return _within(budget_of(context), list(map(str, values)))


@jinja2.pass_context
def _spread(context: Context, values: Any) -> list[Any]:
    """The arguments that stand behind a `*`."""
    budget = budget_of(context)
    if isinstance(values, str):
        budget.check(PLACE * len(values))
    return budget.checked(list(values))


def _within(budget: Budget, pieces: list[str]) -> str:
    budget.check(sum(map(len, pieces)))
    return budget.checked(joined(pieces))


INSTRUMENTS: dict[str, Callable[..., Any]] = {_TICK: _tick, _CHECK: _check, _CONCAT: _concat, _SPREAD: _spread}
