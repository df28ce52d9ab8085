"""What was found of grammars that were tried out, so that one that is sent again costs nothing. The ones that were not
asked for longest go first, where there are too many or they are too long together."""

from __future__ import annotations

from collections import OrderedDict

from opsin_server.guided.check_messages import Found
from opsin_server.guided.grammar import Grammar

MOST = 256
MOST_CHARACTERS = 2**24


class Remembered:
    def __init__(self) -> None:
        self._found: OrderedDict[Grammar, Found] = OrderedDict()
        self._characters = 0

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, grammar: Grammar) -> bool:
        return grammar in self._found

    def get(self, grammar: Grammar) -> Found | None:
        found = self._found.get(grammar)
        if found is not None:
            self._found.move_to_end(grammar)
        return found

    def put(self, grammar: Grammar, found: Found) -> None:
        if grammar in self._found:
            self._characters -= _characters(grammar, self._found.pop(grammar))
        self._found[grammar] = found
        self._characters += _characters(grammar, found)
        while len(self._found) > MOST or self._characters > MOST_CHARACTERS:
            self._characters -= _characters(*self._found.popitem(last=False))


def _characters(grammar: Grammar, found: Found) -> int:
    return _length(grammar) + len(found.text) + len(found.fault)


def _length(grammar: Grammar) -> int:
    return len(grammar.text) + len(grammar.other) + sum(map(_length, grammar.parts))
