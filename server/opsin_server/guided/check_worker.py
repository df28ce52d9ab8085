"""Tries grammars out: a process of its own, which hostile ones may fill, hold up or crash. Started by `check_process`;
ends with its standard input. Writes an empty line when it is ready."""

from __future__ import annotations

import os
import random
import resource
import sys
from contextlib import suppress
from pathlib import Path

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import gbnf_to_lark

from opsin_server.guided.check_messages import Asked, Found, asked_of, line_of
from opsin_server.guided.grammar import either
from opsin_server.guided.limits import HEAD, parser_limits

MEMORY = 2**29  # bytes of addresses beside those of an empty process
STEPS = 24  # tokens that are drawn of each grammar
END = 256


class Bytes:
    """A vocabulary of single bytes and an end: which grammars are accepted does not depend on the model."""

    eos_token_id = END
    bos_token_id = None
    tokens = (*(bytes([i]) for i in range(256)), b"\xff<end>")
    special_token_ids = (END,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def main() -> None:
    os.nice(5)  # answers come first
    tokenizer = LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=END + 1, eos_token=[END], slices=[])
    _limit_memory()
    _say(b"")
    for line in sys.stdin.buffer:
        _say(line_of(found_in(asked_of(line), tokenizer)))


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def _limit_memory() -> None:
    with suppress(OSError, ValueError):  # (not every system has such a limit)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def found_in(asked: Asked, tokenizer: LLTokenizer) -> Found:
    text = asked.text
    if asked.gbnf:
        try:
            text = HEAD + gbnf_to_lark(text).replace("%llguidance {}", "")
        except RecursionError:
            return Found("its brackets are nested too deeply", text)
        except Exception as error:  # (whatever its parser met)
            return Found(f"it is no GBNF: {error}", text)
    if asked.other:
        text = either(text, asked.other)
    return Found(fault_of(text, tokenizer), text)


def fault_of(grammar: str, tokenizer: LLTokenizer) -> str:
    """Compiles it and draws the beginning of an answer: some faults show only then."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits())
    rng = random.Random(0)  # noqa: S311
    for _ in range(STEPS):
        if matcher.is_error() or matcher.is_stopped():
            break
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [i for i in range(END) if mask >> i & 1]
        if matcher.is_error() or not allowed:
            break
        matcher.consume_token(rng.choice(allowed))
    return matcher.get_error() if matcher.is_error() else ""


if __name__ == "__main__":
    main()
