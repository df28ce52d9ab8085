"""Finds the end of a JSON value that comes piece by piece."""

from __future__ import annotations

import re

_NEXT = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')
_SCALAR_ENDS = re.compile(r"[\s,}\]]")


class JsonScanner:
    """Of one value; depth: lists and objects that are open already. It looks at brackets and strings only: what it
    takes for a value may be no JSON."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._inside_string = self._escaped = False
        self._begun = depth > 0
        self._is_word = False  # a number, true, false or null

    def take(self, text: str) -> int | None:
        """How many of these characters, which follow those before, belong to the value. None: all, and it goes on."""
        at = 0
        if not self._begun:
            at = len(text) - len(text.lstrip())
            if at == len(text):
                return None
            self._begun, self._is_word = True, text[at] not in '"{['
        if self._is_word:
            end = _SCALAR_ENDS.search(text, at)
            return end.start() if end else None
        while at < len(text):
            if self._inside_string:
                at = self._through_string(text, at)
                if self._inside_string or self._depth:
                    continue
                return at
            found = _NEXT.search(text, at)
            if found is None:
                return None
            at = found.end()
            if found[0] == '"':
                self._inside_string = True
                continue
            self._depth += 1 if found[0] in "{[" else -1
            if self._depth <= 0:
                return at
        return None

    def _through_string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        found = _IN_STRING.search(text, at)
        if found is None:
            return len(text)
        if found[0] == "\\":
            self._escaped = True
        else:
            self._inside_string = False
        return found.end()
