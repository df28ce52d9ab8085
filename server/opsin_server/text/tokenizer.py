"""Text to ids and back, from a directory's tokenizer.json."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from opsin_plugins.spec import SpecError
from opsin_server.errors import OpsinError
from opsin_server.text import token_bytes as pieces
from opsin_server.text.load_tokenizer import add_configured, named_tokens, plain_tokenizer, read_tokenizer
from opsin_server.text.markers import marker_pattern
from opsin_server.text.token_bytes import Json


class Tokenizer:
    """Threads may share one.

    added: the strings of the added tokens, all that user text must not turn into a token. Runs of blanks that are no
    special tokens are not among them: they are spelling, not markers.
    marker_ids: the ids of these strings, but for the unknown token, which is how a vocabulary writes what it lacks.
    names: bos_token, eos_token and so on, as chat templates call them.
    opening, closing: ids that the tokenizer itself puts in front of a prompt (BOS in many Llamas) and behind it.
    byte_ids: byte-fallback tokens, whose text depends on their neighbours.
    drops_first_blank: whether the blank that a word's token brings is no part of a text that begins with it.
    """

    def __init__(self, directory: Path, config: Mapping[str, object] | None = None, guard: Iterable[int] = ()) -> None:
        """config: tokenizer_config.json. guard: ids to treat like added tokens, whatever the file says of them."""
        config = config or {}
        read = read_tokenizer(directory)
        document, backend = read.document, read.backend
        pieces.check_streams(document.get("decoder"))
        self.names = {**read.names, **named_tokens(directory, config)}
        add_configured(backend, self.names.values(), config)
        tokens = backend.get_added_tokens_decoder()
        markers = {i: t.content for i, t in tokens.items() if t.content and (t.special or not t.content.isspace())}
        markers |= {i: text for i in guard if (text := backend.id_to_token(i)) is not None}
        self.added = tuple(sorted(markers.values(), key=len, reverse=True))
        self.marker_ids = frozenset(markers) - {_unknown_id(document["model"])}
        if missing := set(guard) - self.marker_ids:
            raise SpecError(f"{directory}: tokenizer.json has no token of its own for the ids {sorted(missing)}")
        self.vocab_size = 1 + max([*_ids(document["model"]), *tokens])
        # Bytes that one token can stand for, at most: what no context can hold need not be tokenized to know it.
        self.longest_token = max(len(text.encode()) for text in backend.get_vocab())
        self._added = {i: token.content.encode() for i, token in tokens.items()}
        self._special = frozenset(i for i, token in tokens.items() if token.special)
        self._special_ids = {tokens[i].content: i for i in self._special}
        self.added_pattern = marker_pattern(self.added)
        self._special_pattern = marker_pattern(self._special_ids)
        self._plain = plain_tokenizer(document, backend, markers.values())
        self._read = pieces.reader(document.get("decoder"))
        self._bytes: dict[int, bytes] = {}
        self.byte_level = pieces.is_byte_level(document.get("decoder"))
        self.byte_ids = frozenset(_fallback_ids(document, backend))
        self._backend = backend
        self.opening, self.closing = self._ends()
        self.drops_first_blank = not self.byte_level and self._drops_first_blank()
        # A token that no text holds, to encode text around a gap as if a special token stood there.
        self._cut = f"\ue000{secrets.token_hex(16)}\ue001"
        backend.add_special_tokens([AddedToken(self._cut, normalized=False)])
        self._cut_id = backend.token_to_id(self._cut)

    def encode(self, text: str) -> list[int]:
        """Strings of added tokens in the text become these tokens; nothing is put in front or behind."""
        # The batch form without offsets: 40 % less for a long text.
        return self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def encode_plain(self, text: str) -> list[int]:
        """Every string is text, as in the middle of a longer one. Never gives an id of `marker_ids`."""
        ids = self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids
        if not self.marker_ids.isdisjoint(ids):  # cannot be: the plain vocabulary has no name for them
            raise OpsinError("a special token came out of plain text")
        return ids

    def encode_around(self, texts: Sequence[str], plain: Sequence[str]) -> list[int]:
        """texts[0] plain[0] texts[1] ... texts[n]: `texts` as by `encode`, in their places; `plain` as plain text."""
        if not plain:
            return self.encode(texts[0])
        fills = iter(plain)
        out: list[int] = []
        for i in self.encode(self._cut.join(texts)):
            out += self.encode_plain(next(fills)) if i == self._cut_id else (i,)
        return out

    def locate_around(self, texts: Sequence[str], plain: Sequence[str]) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `encode_around`, and the characters of each in texts[0] plain[0] texts[1] ... texts[n]: from the
        first to behind the last. Tokens of one character's bytes share it; a token of no character stands before one.
        """
        found = self._backend.encode_batch([self._cut.join(texts)], add_special_tokens=False)[0]
        fills, ids, places, moved = iter(plain), [], [], 0
        for i, (start, end) in zip(found.ids, found.offsets, strict=True):
            if i != self._cut_id:
                ids.append(i)
                places.append((start + moved, end + moved))
                continue
            fill = next(fills)
            inner = self._plain.encode_batch([fill], add_special_tokens=False)[0]
            ids += inner.ids
            places += [(start + moved + a, start + moved + b) for a, b in inner.offsets]
            moved += len(fill) - len(self._cut)
        return ids, places

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Ids outside of the vocabulary add nothing. special: special tokens add their strings, and else nothing."""
        return self._backend.decode(ids, skip_special_tokens=not special)

    def piece(self, token: int) -> str:
        """The token as the vocabulary writes it. An id outside of the vocabulary: an empty string."""
        return self._backend.id_to_token(token) or "" if 0 <= token < self.vocab_size else ""

    def token_bytes(self, token: int) -> bytes:
        """What the token adds to a text. An added token: its string. An id outside of the vocabulary: nothing."""
        if (known := self._added.get(token)) is not None:
            return known
        return self.piece_bytes(token)

    def piece_bytes(self, token: int) -> bytes:
        """The same as the decoder sees it: it reads added tokens like all others."""
        if (known := self._bytes.get(token)) is not None:
            return known
        piece = self._backend.id_to_token(token) if 0 <= token < self.vocab_size else None
        return self._bytes.setdefault(token, b"" if piece is None else self._read(piece))

    def token_text(self, token: int) -> str:
        """The bytes as text, with U+FFFD where they are part of a character."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def token_id(self, text: str | None) -> int | None:
        """The id of a token by its string; None where there is none."""
        return None if text is None else self._backend.token_to_id(text)

    def split_special(self, text: str) -> list[str | int]:
        """A text as strings, and the ids of the special tokens that stand in it."""
        found: list[str | int] = []
        at = 0
        for match in self._special_pattern.finditer(text):
            found += [text[at : match.start()]] if match.start() > at else []
            found.append(self._special_ids[match[0]])
            at = match.end()
        return [*found, text[at:]] if at < len(text) else found

    def is_special(self, token: int) -> bool:
        return token in self._special

    def _drops_first_blank(self) -> bool:
        """SentencePiece writes a blank in front of every word, and drops that of a text's first one."""
        words = (i for i in range(self.vocab_size) if (text := self.piece_bytes(i))[:1] == b" " and text[1:].isalpha())
        word = next(words, None)
        return word is not None and not self._backend.decode([word]).startswith(" ")

    def _ends(self) -> tuple[list[int], list[int]]:
        bare, dressed = (self._backend.encode("0", add_special_tokens=add).ids for add in (False, True))
        at = next((i for i in range(len(dressed)) if dressed[i : i + len(bare)] == bare), 0)
        return dressed[:at], dressed[at + len(bare) :]


def _fallback_ids(document: Json, backend: Backend) -> Iterable[int]:
    if not pieces.has_byte_fallback(document.get("decoder")):
        return ()
    found = (backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return (i for i in found if i is not None)


def _ids(model: Json) -> Iterable[int]:
    vocab = model["vocab"]
    return range(len(vocab)) if isinstance(vocab, list) else vocab.values()


def _unknown_id(model: Json) -> int | None:
    vocab = model["vocab"]
    return model.get("unk_id") if isinstance(vocab, list) else vocab.get(model.get("unk_token"))
