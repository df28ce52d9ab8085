"""The tokenizer in a GGUF's metadata as a tokenizer.json. Sources: the format's specification (tokenizer.ggml.*), and
of each kind the tokenizer.json that its model's publisher has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opsin_plugins.loading.gguf.container import read_container
from opsin_plugins.loading.gguf.metadata import Fields
from opsin_plugins.spec import SpecError

Json = dict[str, Any]
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # types of tokens; 1 is a normal one, 6 a byte
BLANK = "▁"
MAX_PIECE = 64  # characters of a piece that merges are made for: a longer run of blanks is made of shorter ones

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}{_REST}"
QWEN2 = rf"{_WORDS}|\p{{N}}{_REST}"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> list[Json]:
    return [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]


_GPT2: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS: Json = {"type": "Digits", "individual_digits": True}
# How a text is cut before merges, by tokenizer.ggml.pre.
CUTS: Mapping[str, Sequence[Json]] = {
    "gpt-2": [_GPT2],
    "smollm": [_DIGITS, _GPT2],
    "starcoder": [_DIGITS, _GPT2],
    "llama-bpe": _split(LLAMA3),
    "qwen2": _split(QWEN2),
    "tekken": _split(TEKKEN),
}
WHOLE_FIRST = ("llama-bpe", "tekken")  # a piece that is an entry is that token, whatever its merges make


def convert_gguf(path: Path) -> Json:
    """Raises SpecError for a kind that is not read."""
    container = read_container(path)
    said = Fields(container).of("tokenizer.ggml.")
    kind = said.text("model")
    if kind not in ("gpt2", "llama"):
        raise SpecError(
            f"{path}: its tokenizer is of the kind {kind!r}; there are gpt2 (BPE) and llama (SentencePiece)"
        )
    tokens = said.items("tokens")
    if not tokens or not all(isinstance(token, str) for token in tokens) or len(set(tokens)) != len(tokens):
        raise SpecError(f"{path}: tokenizer.ggml.tokens is no list of different texts")
    types = said.items("token_type") or (1,) * len(tokens)
    if len(types) != len(tokens):
        raise SpecError(f"{path}: {len(tokens):,} tokens and {len(types):,} types of them")
    made = _byte_pairs(path, said, tokens) if kind == "gpt2" else _sentencepiece(path, said, tokens, types)
    opens = said.flag("add_bos_token", kind == "llama" or said.text("pre", "") == "llama-bpe")
    return {
        "version": "1.0",
        "added_tokens": _added(tokens, types),
        "post_processor": _opening(said, tokens) if opens else None,
        **made,
    }


def _added(tokens: Sequence[str], types: Sequence[int]) -> list[Json]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": text, **plain, "special": kind != USER_DEFINED}
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]


def _opening(said: Fields, tokens: Sequence[str]) -> Json | None:
    """BOS in front of a text."""
    number = said.maybe("bos_token_id")
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        return None
    bos = {"SpecialToken": {"id": tokens[number], "type_id": 0}}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, bos, second],
        "special_tokens": {tokens[number]: {"id": tokens[number], "ids": [number], "tokens": [tokens[number]]}},
    }


def _byte_pairs(path: Path, said: Fields, tokens: Sequence[str]) -> Json:
    pre = said.text("pre", "default")
    if pre not in CUTS:
        raise SpecError(f"{path}: its tokenizer cuts text by the rule {pre!r}; there are {', '.join(CUTS)}")
    merges = [merge.split(" ") for merge in said.items("merges") if isinstance(merge, str)]
    if not merges or any(len(pair) != 2 for pair in merges):
        raise SpecError(f"{path}: tokenizer.ggml.merges is no list of pairs")
    cuts = CUTS[pre]
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(cuts)},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": pre in WHOLE_FIRST,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": merges,
        },
    }


def _sentencepiece(path: Path, said: Fields, tokens: Sequence[str], types: Sequence[int]) -> Json:
    scores = said.items("scores")
    if len(scores) != len(tokens):
        raise SpecError(f"{path}: {len(tokens):,} tokens and {len(scores):,} scores of them")
    unknown = said.integer("unknown_token_id", 0)
    if unknown >= len(tokens):
        raise SpecError(f"{path}: there is no unknown token {unknown}")
    normal = {text: score for text, score, kind in zip(tokens, scores, types, strict=True) if kind in (1, USER_DEFINED)}
    prefix = said.flag("add_space_prefix", True)
    first = [{"type": "Prepend", "prepend": BLANK}] if prefix else []
    last = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    steps = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*first, blanks]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [*steps, *last]},
        "model": {
            "type": "BPE",
            "unk_token": tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": _merges(normal),
        },
    }


def _merges(scores: Mapping[str, float]) -> list[list[str]]:
    """SentencePiece joins the neighbours whose piece has the highest score: every way to cut a piece into two pieces is
    a merge, in the order of the scores."""
    found = [
        (-score, order, [text[:i], text[i:]])
        for order, (text, score) in enumerate(scores.items())
        if 1 < len(text) <= MAX_PIECE
        for i in range(1, len(text))
        if text[:i] in scores and text[i:] in scores
    ]
    return [pair for *_, pair in sorted(found, key=lambda one: one[:2])]
