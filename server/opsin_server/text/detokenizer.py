"""Ids to text while they come, one object a request: the pushes and the finish add up to the decoding of all ids."""

from __future__ import annotations

import codecs
from collections.abc import Sequence, Set

from opsin_server.text.tokenizer import Tokenizer


class Detokenizer:
    """Never gives half a character; special tokens add nothing. Bytes that are no UTF-8 become U+FFFD."""

    def __init__(self, tokenizer: Tokenizer, markers: Set[int] = frozenset()) -> None:
        """markers: special tokens of which the text has the strings."""
        self._tokenizer, self._markers = tokenizer, markers
        self._stream: _Bytes | _Window = self._new()

    def _new(self) -> _Bytes | _Window:
        return _Bytes(self._tokenizer) if self._tokenizer.byte_level else _Window(self._tokenizer)

    def push(self, ids: Sequence[int]) -> str:
        if not self._markers or self._markers.isdisjoint(ids):
            return self._stream.push(ids)
        text = ""
        for token in ids:
            if token in self._markers:
                text += self._stream.finish() + self._tokenizer.token_text(token)
                self._stream = self._new()
            else:
                text += self._stream.push((token,))
        return text

    def finish(self) -> str:
        """What was held back: the start of a character that never ended."""
        return self._stream.finish()


class _Bytes:
    """Byte-level vocabularies: the text is the UTF-8 of all tokens' bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Sequence[int]) -> str:
        tokenizer = self._tokenizer
        return self._utf8.decode(b"".join(tokenizer.piece_bytes(i) for i in ids if not tokenizer.is_special(i)))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Window:
    """All others: the text of a token depends on what stands before it, so the last tokens are decoded again.

    The window starts with the tokens that the last text came from. Bytes of byte-fallback tokens are held until their
    run ends, since one bad byte changes the text of the whole run.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._old = 0  # ids at the window's start whose text is out
        self._shown = ""  # that text

    def push(self, ids: Sequence[int]) -> str:
        tokenizer = self._tokenizer
        self._ids += [i for i in ids if tokenizer.piece_bytes(i) and not tokenizer.is_special(i)]
        if len(self._ids) == self._old or self._ids[-1] in tokenizer.byte_ids:
            return ""
        return self._advance()

    def finish(self) -> str:
        return self._advance() if len(self._ids) > self._old else ""

    def _advance(self) -> str:
        text = self._tokenizer.decode(self._ids)
        new = text[len(self._shown) :]
        self._ids = self._ids[self._old :]
        self._old = len(self._ids)
        self._shown = self._tokenizer.decode(self._ids)
        return new
