"""Calls of tools in an answer's text, read while it comes, in the form that the model's template writes them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from opsin_server.text.json_scanner import JsonScanner
from opsin_server.text.tool_format import CALL_ID, ToolFormat

MAX_HEAD = 4096  # characters in which a call must have said its name
MAX_LIST = 2**16  # of calls as Python writes them
_HEAD = re.compile(r'\s*\[?\s*\{\s*"name"\s*:\s*"((?:[^"\\]|\\.)*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\S)')
_ID = "[A-Za-z0-9_-]{1,64}"
_BLANKS = " \t\n\r,;"


@dataclass(frozen=True)
class ToolCallDelta:
    """A part of call number `index`: its first one has an id and the name, and all add up the arguments' text."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class ToolPiece:
    """What has become certain: text, and then calls."""

    text: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class ToolCallReader:
    """Of one answer. new_id: names a call. known: the tools that there are: where calls have no opener, an object is a
    call if it has the name of one of these. What only looks like a call is given back as text, unless the answer is
    nothing but calls (only_calls): then it was cut.

    Each of the methods that read takes what it can from `_held`, sets who reads on, and says whether that one may try.
    """

    def __init__(
        self, form: ToolFormat, new_id: Callable[[], str], known: Collection[str], only_calls: bool = False
    ) -> None:
        self._form, self._new_id, self._known, self._only_calls = form, new_id, known, only_calls
        self._held = ""  # not yet certain
        self._said = ""
        self._deltas: list[ToolCallDelta] = []
        self._read: Callable[[bool], bool] = self._text if form.opener else self._beginning
        self._scanner = JsonScanner()
        self._marks = _marks(form)
        self.count = 0
        self.cut = False
        """Whether the arguments of the last call have not ended."""

    def push(self, text: str) -> ToolPiece:
        self._held += text
        return self._advance(last=False)

    def finish(self) -> ToolPiece:
        """What is left when the answer has ended."""
        return self._advance(last=True)

    def _advance(self, last: bool) -> ToolPiece:
        while self._held and self._read(last):
            pass
        piece = ToolPiece("" if self._only_calls else self._said, tuple(self._deltas))
        self._said, self._deltas = "", []
        return piece

    # ------------------------------------------------------------------------------------ outside of calls

    def _text(self, last: bool) -> bool:
        """Up to an opener. The blanks in front of one, and behind the last call, belong to the calls."""
        before, opener, behind = self._held.partition(self._form.opener)
        if opener:
            self._said += before.rstrip()
            self._held, self._read = behind, self._head
            return True
        certain = before if last else before[: len(before) - _overlap(before, opener=self._form.opener)].rstrip()
        self._said += certain.rstrip() if last and self.count else certain
        self._held = before[len(certain) :]
        return False

    def _beginning(self, last: bool) -> bool:
        """Of an answer whose calls have no opener: it is a call from its first character on, or text."""
        start = self._held.lstrip()
        if not start and not last:
            return False
        is_call = start.startswith(self._form.begin.strip()[:1])
        self._read = self._head if is_call else self._plain
        return True

    def _plain(self, last: bool) -> bool:
        self._said += self._held
        self._held = ""
        return False

    def _give_up(self) -> bool:
        """It was no call."""
        self._said += self._form.opener if not self.count else ""
        self._read = self._text if self._form.opener else self._plain
        return True

    # ------------------------------------------------------------------------------------------- calls

    def _head(self, last: bool) -> bool:
        """The name, and what stands between it and the arguments."""
        return {"object": self._object, "named": self._named, "pythonic": self._pythonic}[self._form.kind](last)

    def _object(self, last: bool) -> bool:
        if (match := _HEAD.match(self._held)) is not None:
            name = _string(match[1])
            if not self._may_call(name):
                return self._give_up()
            self._begin(name)
            self._held = self._held[match.end() :]
            self._expect_arguments()
            return True
        if (end := JsonScanner().take(self._held)) is not None:
            return self._whole_object(end)
        return self._give_up() if last or len(self._held) > MAX_HEAD else False

    def _whole_object(self, end: int) -> bool:
        """One whose arguments do not stand right behind its name."""
        try:
            found = json.loads(self._held[:end], strict=False)
            name, arguments = found["name"], found.get("arguments", found.get("parameters", {}))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return self._give_up()
        if not isinstance(name, str) or not self._may_call(name):
            return self._give_up()
        self._begin(name)
        self._add(arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))
        self._held, self._read = self._held[end:], self._behind
        return True

    def _named(self, last: bool) -> bool:
        middle = re.escape(self._form.middle.strip()).replace(CALL_ID, _ID)
        match = re.match(rf"\s*([\w.-]{{1,256}}?)\s*{middle}\s*(?=\{{)", self._held)
        if match is None:
            return self._give_up() if last or len(self._held) > MAX_HEAD else False
        self._begin(match[1])
        self._held = self._held[match.end() :]
        self._expect_arguments()
        return True

    def _pythonic(self, last: bool) -> bool:
        """All calls at once, when their list has ended."""
        text = self._held.lstrip()
        start = "" if text.startswith("[") else "["  # (an opener may have had it)
        end = text.rfind("]") + 1
        calls = python_calls(start + text[:end]) if 0 < end <= MAX_LIST else None
        if calls is None or not all(self._may_call(name) for name, _ in calls):
            return self._give_up() if last or calls is not None or len(text) > MAX_LIST else False
        for name, arguments in calls:
            self._begin(name)
            self._add(arguments)
        self._held, self._read = text[end:], self._behind
        return True

    def _expect_arguments(self) -> None:
        self._scanner, self.cut = JsonScanner(), True
        self._read = self._quoted if self._held.startswith('"') else self._arguments

    def _arguments(self, last: bool) -> bool:
        """As they come, up to the end of their value."""
        end = self._scanner.take(self._held)
        self._add(self._held if end is None else self._held[:end])
        self._held = "" if end is None else self._held[end:]
        if end is not None:
            self._end_arguments()
        return end is not None

    def _quoted(self, last: bool) -> bool:
        """Arguments that were written as JSON in a string."""
        end = JsonScanner().take(self._held)
        if end is None and not last:
            return False
        self._add(self._held if end is None else _string(self._held[1 : end - 1]))
        self._held = "" if end is None else self._held[end:]
        self._end_arguments()
        self.cut = end is None
        return True

    def _end_arguments(self) -> None:
        self._scanner, self.cut = JsonScanner(depth=1), False
        self._read = self._rest if self._form.kind == "object" else self._behind

    def _rest(self, last: bool) -> bool:
        """Of the object that held a call."""
        end = self._scanner.take(self._held)
        self._held = "" if end is None else self._held[end:]
        if end is not None:
            self._read = self._behind
        return end is not None

    def _behind(self, last: bool) -> bool:
        """A call: its closer, another call, or text again."""
        self._held = self._held.lstrip(_BLANKS)
        for mark, begins in self._marks:
            if self._held.startswith(mark):
                self._held = self._held[len(mark) :]
                self._read = self._head if begins else self._behind
                return True
            if mark.startswith(self._held):
                self._held = "" if last else self._held  # (the answer was cut within it)
                return False
        if self._form.kind == "object" and self._held.startswith("{"):
            self._read = self._head
        else:
            self._read = self._text if self._form.opener else self._plain
        return True

    def _may_call(self, name: str) -> bool:
        return bool(self._form.opener) or name in self._known

    def _begin(self, name: str) -> None:
        self._deltas.append(ToolCallDelta(self.count, "", self._new_id(), name))
        self.count += 1

    def _add(self, arguments: str) -> None:
        if arguments:
            self._deltas.append(ToolCallDelta(self.count - 1, arguments))


def _marks(form: ToolFormat) -> list[tuple[str, bool]]:
    """What may stand behind a call, the longest first, and whether another one follows on it."""
    if form.kind == "object":
        end = form.end.rpartition("}")[2].strip()
        marks = [(end, False), ("]", False), (form.opener, True)]
    else:
        marks = [(form.between.strip(), True), (form.end.strip(" )]"), False), (form.opener, True)]
    return sorted(((mark, begins) for mark, begins in marks if mark), key=lambda pair: -len(pair[0]))


def _overlap(text: str, opener: str) -> int:
    """How many characters at the text's end may be the beginning of an opener."""
    return next((n for n in range(min(len(text), len(opener) - 1), 0, -1) if opener.startswith(text[-n:])), 0)


def _string(escaped: str) -> str:
    try:
        return str(json.loads(f'"{escaped}"', strict=False))
    except ValueError:
        return escaped


class _Constants(ast.NodeTransformer):
    """Writes the constants of JSON as Python has them."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        known = {"true": True, "false": False, "null": None}
        return ast.Constant(known[node.id]) if node.id in known else node


def python_calls(text: str) -> list[tuple[str, str]] | None:
    """`[name(key=value, ...), ...]`: names, and arguments as JSON. None: it is something else. Nothing is run."""
    try:
        tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            return None
        return [_python_call(call) for call in tree.elts]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _python_call(call: ast.expr) -> tuple[str, str]:
    """Raises ValueError for what is no call with names and constants."""
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError
    arguments = {keyword.arg: ast.literal_eval(_Constants().visit(keyword.value)) for keyword in call.keywords}
    if None in arguments:
        raise ValueError
    return ast.unparse(call.func), json.dumps(arguments, ensure_ascii=False)
