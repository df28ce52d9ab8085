"""The methods of strings that a template may call. Each is bounded before it runs, and keeps what the template wrote.

None runs for longer than a pass over its text, or makes more than the budget allows. What a method does to the trust
of a `Trusted` follows from where its characters go: pieces are slices, letters are changed one by one, fillings are the
template's own. Methods that are not here (`encode`, `translate`, `expandtabs`) no chat template needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from opsin_server.text.template_budget import PLACE, Budget, TemplateStopError
from opsin_server.text.trusted import Trusted, joined, located, marked, own, trust_of

MAX_PRODUCT = 2**26  # comparisons of characters, for methods that may compare each with each

Method = Callable[..., Any]


def call(budget: Budget, text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`text.name(...)`. Raises TemplateStopError for a method that is not allowed, or would leave the budget."""
    if (method := METHODS.get(name)) is None:
        raise TemplateStopError(f"the chat template calls str.{name}, which is not allowed")
    return method(budget, text, *args, **kwargs)


def _plain(name: str) -> Method:
    """Methods that give a number or a truth, in one pass."""
    function = getattr(str, name)

    def method(budget: Budget, text: str, *args: Any) -> Any:
        return function(text, *args)

    return method


def _backward(name: str) -> Method:
    """Searches from the end compare each place with the whole of what they look for, where forward ones skip."""
    function = getattr(str, name)

    def method(budget: Budget, text: str, sought: str, *args: int) -> Any:
        _check_product(text, sought)
        return function(text, sought, *args)

    return method


def _letters(name: str) -> Method:
    """Changes of case. A letter may become several ("ß".upper() is "SS")."""
    function = getattr(str, name)

    def method(budget: Budget, text: str) -> str:
        changed = function(text)
        if type(text) is not Trusted or len(changed) == len(text):
            return recased(text, changed)
        lengths = (len(function(char)) for char in str.__str__(text))
        trust = "".join(mark * length for mark, length in zip(trust_of(text), lengths, strict=True))
        return marked(changed, trust) if len(trust) == len(changed) else changed

    return method


def recased(text: str, changed: str) -> str:
    """`changed`, with the trust of `text`, whose letters became its letters one by one."""
    return Trusted(changed, trust_of(text)) if type(text) is Trusted and len(changed) == len(text) else changed


def _filled(name: str) -> Method:
    function = getattr(str, name)

    def method(budget: Budget, text: str, width: int, fill: str = own(" ")) -> str:
        budget.check(width)
        filled = function(text, width, fill)
        return marked(filled, function(trust_of(text), width, trust_of(fill)))

    return method


def _zfill(budget: Budget, text: str, width: int) -> str:
    budget.check(width)
    signed = text[:1] if text[:1] in ("+", "-") else text[:0]
    zeros = own("0" * (width - len(text)))
    return signed + zeros + text[len(signed) :]


def strip(budget: Budget, text: str, chars: str | None = None) -> str:
    return _lstrip(budget, _rstrip(budget, text, chars), chars)


def _lstrip(budget: Budget, text: str, chars: str | None = None) -> str:
    _check_product(text, chars)
    return text[len(text) - len(str.lstrip(text, chars)) :]


def _rstrip(budget: Budget, text: str, chars: str | None = None) -> str:
    _check_product(text, chars)
    return text[: len(str.rstrip(text, chars))]


def _removeprefix(budget: Budget, text: str, prefix: str) -> str:
    return text[len(text) - len(str.removeprefix(text, prefix)) :]


def _removesuffix(budget: Budget, text: str, suffix: str) -> str:
    return text[: len(str.removesuffix(text, suffix))]


def _split(budget: Budget, text: str, sep: str | None = None, maxsplit: int = -1) -> Sequence[str]:
    return _slices(budget, text, str.split(text, sep, maxsplit), None if sep is None else len(sep))


def _rsplit(budget: Budget, text: str, sep: str | None = None, maxsplit: int = -1) -> Sequence[str]:
    _check_product(text, sep)
    return _slices(budget, text, str.rsplit(text, sep, maxsplit), None if sep is None else len(sep))


def splitlines(budget: Budget, text: str, keepends: bool = False) -> Sequence[str]:
    lines = _slices(budget, text, str.splitlines(text, keepends or type(text) is Trusted), 0)
    if keepends or type(text) is not Trusted:
        return lines
    return [line[: len(str.splitlines(line)[0])] for line in lines]


def _partition(budget: Budget, text: str, sep: str) -> tuple[str, ...]:
    return tuple(_slices(budget, text, str.partition(text, sep), 0))


def _rpartition(budget: Budget, text: str, sep: str) -> tuple[str, ...]:
    _check_product(text, sep)
    return tuple(_slices(budget, text, str.rpartition(text, sep), 0))


def _slices(budget: Budget, text: str, pieces: Sequence[str], skip: int | None) -> Sequence[str]:
    budget.check(PLACE * len(pieces))
    return located(text, pieces, skip) if type(text) is Trusted else pieces


def replace(budget: Budget, text: str, old: str, new: str, count: int = -1) -> str:
    places = str.count(text, old)
    times = places if count < 0 else min(places, count)
    budget.check(len(text) + times * (len(new) - len(old)))
    if not times:
        return text
    if not old or (type(text) is not Trusted and type(new) is not Trusted):
        return str.replace(text, old, new, count)
    return joined(list(_split(budget, text, old, times)), new)


def join(budget: Budget, between: str, values: Iterable[str]) -> str:
    if isinstance(values, list | tuple):  # they have been weighed
        pieces = list(values)
    else:
        pieces, size = [], 0
        for piece in values:
            pieces.append(piece)
            size += len(piece) if isinstance(piece, str) else 0  # anything else is Python's error to raise
            budget.check(size)
    budget.check(len(between) * len(pieces))
    return joined(pieces, between)


def _check_product(text: str, sought: str | None) -> None:
    if sought is not None and len(sought) > 1 and len(text) * len(sought) > MAX_PRODUCT:
        raise TemplateStopError(
            f"the chat template looks for {len(sought)} characters in {len(text)}, from the end or any of them; "
            f"the limit is a product of {MAX_PRODUCT}"
        )


METHODS: dict[str, Method] = {
    name: make(name)
    for make, names in {
        _plain: """count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric
            isprintable isspace istitle isupper startswith""",
        _backward: "rfind rindex",
        _letters: "capitalize casefold lower swapcase title upper",
        _filled: "center ljust rjust",
    }.items()
    for name in names.split()
} | {
    "join": join,
    "lstrip": _lstrip,
    "partition": _partition,
    "removeprefix": _removeprefix,
    "removesuffix": _removesuffix,
    "replace": replace,
    "rpartition": _rpartition,
    "rsplit": _rsplit,
    "rstrip": _rstrip,
    "split": _split,
    "splitlines": splitlines,
    "strip": strip,
    "zfill": _zfill,
}
