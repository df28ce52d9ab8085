"""Grammars compiled in a thread of their own, so that no step waits for one, and what holds an answer to one."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from opsin_server.engine.scheduling.sequence import GuideError
from opsin_server.guided.limits import parser_limits

log = logging.getLogger("opsin.engine")
KEPT = 32  # compiled grammars
LEAVE_SECONDS = 1.0


class Guide:
    """Where one answer stands in its grammar. matcher: its own."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def fill(self, address: int, size: int) -> None:
        """Writes which tokens may follow, one bit each, into `size` bytes of memory. Raises GuideError."""
        self._matcher.unsafe_compute_mask_ptr(address, size)
        self._check()

    def accept(self, token: int) -> bool:
        """Takes the token that was drawn; whether nothing may follow it. Raises GuideError."""
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GuideError(" ".join(self._matcher.get_error().replace("<non-verbose/>", "").split())[:300])


@dataclass(frozen=True)
class CompiledGrammar:
    """Either a guide, or a sentence that says why there is none."""

    request_id: str
    guide: Guide | None
    error: str = ""


class Words:
    """A vocabulary as llguidance reads it. Texts are not encoded here: no grammar forces tokens (`guided.limits`)."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special: Sequence[int], ends: Sequence[int]) -> None:
        marked = list(tokens)
        for token in special:
            marked[token] = b"\xff" + marked[token]  # how llguidance tells them from text
        self.tokens, self.special_token_ids, self.eos_token_id = marked, list(special), ends[0]

    def __call__(self, text: str | bytes) -> list[int]:
        raise NotImplementedError("an engine encodes no text")


class GrammarCompiler:
    """vocabulary: tokens that can be drawn."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._wanted: SimpleQueue[tuple[str, str] | None] = SimpleQueue()
        self._done: SimpleQueue[CompiledGrammar] = SimpleQueue()
        self._reader = self._writer = -1
        self._thread: threading.Thread | None = None

    @property
    def words(self) -> int:
        """Of 32 tokens, in a mask."""
        return -(-self._vocabulary // 32)

    @property
    def knows_tokens(self) -> bool:
        return self._tokenizer is not None

    def learn(self, tokens: Sequence[bytes], special: Sequence[int], ends: Sequence[int]) -> None:
        """Takes up to a second for 150,000 tokens, in which nothing else runs: before there are answers. Raises
        ValueError for what is no vocabulary of this model."""
        if len(tokens) != self._vocabulary or not ends:
            raise ValueError(f"{len(tokens)} tokens and {len(ends)} ends; the model draws {self._vocabulary} tokens")
        if not all(0 <= token < len(tokens) for token in (*special, *ends)):
            raise ValueError("a special token is not of the vocabulary")
        words = TokenizerWrapper(Words(tokens, special, ends))
        self._tokenizer = LLTokenizer(words, n_vocab=len(tokens), eos_token=list(ends))
        if self._thread is None:
            self._reader, self._writer = os.pipe()  # a byte a result, so that the engine can wait for one
            self._thread = threading.Thread(target=self._run, name="grammar compiler", daemon=True)
            self._thread.start()

    def fileno(self) -> int:
        """Readable while there are results to take. Of one that knows tokens."""
        return self._reader

    def request(self, request_id: str, grammar: str) -> None:
        self._wanted.put((request_id, grammar))

    @property
    def has_results(self) -> bool:
        return not self._done.empty()

    def results(self) -> list[CompiledGrammar]:
        """What has come to its end since the last call."""
        found = []
        while not self._done.empty():
            os.read(self._reader, 1)
            found.append(self._done.get())
        return found

    def close(self) -> None:
        self._wanted.put(None)
        if self._thread is None:
            return
        self._thread.join(LEAVE_SECONDS)
        if not self._thread.is_alive():
            os.close(self._reader)
            os.close(self._writer)

    def _run(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            result = self._compile(*wanted)
            os.write(self._writer, b"\0")  # (first: who takes the result also takes the byte)
            self._done.put(result)

    def _compile(self, request_id: str, grammar: str) -> CompiledGrammar:
        try:
            return CompiledGrammar(request_id, Guide(self._matcher(grammar).deep_copy()))
        except GuideError as error:
            return CompiledGrammar(request_id, None, str(error))
        except Exception as error:  # nothing may end this thread: requests would wait for ever
            log.exception("a grammar cannot be compiled")
            return CompiledGrammar(request_id, None, type(error).__name__)

    def _matcher(self, grammar: str) -> LLMatcher:
        """At the grammar's beginning."""
        if (known := self._compiled.get(grammar)) is not None:
            self._compiled.move_to_end(grammar)
            return known
        assert self._tokenizer is not None
        made = LLMatcher(self._tokenizer, grammar, log_level=0, limits=parser_limits())
        if made.is_error():
            raise GuideError(" ".join(made.get_error().split())[:300])
        self._compiled[grammar] = made
        if len(self._compiled) > KEPT:
            self._compiled.popitem(last=False)
        return made
