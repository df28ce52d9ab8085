"""Grammars compiled in a thread of their own, so that no step waits for one, and what holds an answer to one."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from opsin_server.engine.running.beside_steps import BesideSteps
from opsin_server.engine.scheduling.sequence import GuideError
from opsin_server.guided.limits import parser_limits

log = logging.getLogger("opsin.engine")
KEPT = 32  # compiled grammars


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
        self._beside: BesideSteps[tuple[str, str], CompiledGrammar] | None = None

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
        if self._beside is None:
            self._beside = BesideSteps("grammar compiler", self._compile)

    @property
    def waits_for(self) -> BesideSteps[tuple[str, str], CompiledGrammar] | None:
        """What can be read while there are results to take. None: no tokens are known, and nothing is compiled."""
        return self._beside

    def request(self, request_id: str, grammar: str) -> None:
        assert self._beside is not None
        self._beside.request((request_id, grammar))

    @property
    def has_results(self) -> bool:
        return self._beside is not None and self._beside.has_results

    def results(self) -> list[CompiledGrammar]:
        """What has come to its end since the last call."""
        return [] if self._beside is None else self._beside.results()

    def close(self) -> None:
        if self._beside is not None:
            self._beside.close()

    def _compile(self, wanted: tuple[str, str]) -> CompiledGrammar:
        request_id, grammar = wanted
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
