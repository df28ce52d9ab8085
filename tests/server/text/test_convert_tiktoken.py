"""Vocabularies of ranked bytes: the ids are those of the definition, lowest rank first."""

from __future__ import annotations

import base64
import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import regex

from opsin_plugins.spec import SpecError
from opsin_server.text.convert_tiktoken import QWEN_PATTERN
from opsin_server.text.tokenizer import Tokenizer

TEXT = "the theme of then and there, 12 34; naïve café\n\n über 日本語 日本  blue  bluer " * 3
PATTERN = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def trained(count: int) -> list[bytes]:
    """A byte vocabulary, and joins of what stands next to each other most often."""
    entries = [bytes([i]) for i in range(256)]
    pieces = [[bytes([b]) for b in word.encode()] for word in regex.findall(QWEN_PATTERN, TEXT)]
    while len(entries) < count:
        pairs: dict[bytes, int] = {}
        for piece in pieces:
            for a, b in pairwise(piece):
                pairs[a + b] = pairs.get(a + b, 0) + 1
        best = max((p for p in pairs if p not in entries), key=lambda p: (pairs[p], p), default=None)
        if best is None:
            break
        entries.append(best)
        pieces = [joined(piece, best) for piece in pieces]
    return entries


def joined(piece: list[bytes], pair: bytes) -> list[bytes]:
    out: list[bytes] = []
    for part in piece:
        if out and out[-1] + part == pair:
            out[-1] = pair
        else:
            out.append(part)
    return out


def by_definition(text: str, entries: list[bytes], pattern: str) -> list[int]:
    ranks = {entry: rank for rank, entry in enumerate(entries)}
    found = []
    for word in regex.findall(pattern, text):
        parts = [bytes([b]) for b in word.encode()]
        while word.encode() not in ranks and len(parts) > 1:
            rank, at = min((ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(pairwise(parts)))
            if rank == len(ranks):
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        found += [ranks[word.encode()]] if word.encode() in ranks else [ranks[p] for p in parts]
    return found


def qwen(directory: Path, entries: list[bytes]) -> Path:
    lines = [f"{base64.b64encode(entry).decode()} {rank}" for rank, entry in enumerate(entries)]
    (directory / "qwen.tiktoken").write_text("\n".join(lines) + "\n")
    return directory


def tekken(directory: Path, entries: list[bytes], reserved: int = 20) -> Path:
    vocab = [{"rank": r, "token_bytes": base64.b64encode(e).decode(), "token_str": None} for r, e in enumerate(entries)]
    config = {"pattern": PATTERN, "default_vocab_size": reserved + len(entries) - 5}
    config["default_num_special_tokens"] = reserved
    (directory / "tekken.json").write_text(json.dumps({"config": config, "vocab": vocab}))
    return directory


def some_texts() -> list[str]:
    rng = random.Random(0)
    words = TEXT.split(" ")
    return [" ".join(rng.choices(words, k=rng.randint(1, 12))) + rng.choice(["", "\n", "  ", "!?"]) for _ in range(200)]


def test_qwen_ids_are_those_of_the_definition(tmp_path: Path) -> None:
    entries = trained(400)
    tokenizer = Tokenizer(qwen(tmp_path, entries))
    for text in some_texts():
        ids = tokenizer.encode(text)
        assert ids == by_definition(text, entries, QWEN_PATTERN)
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("<|im_start|>a<img>") == [len(entries) + 1, ord("a"), len(entries) + 3 + 205 + 6]
    assert tokenizer.encode_plain("<img>") != [len(entries) + 3 + 205 + 6]


def test_tekken_ids_stand_behind_the_special_ones_and_the_tail_is_cut_off(tmp_path: Path) -> None:
    entries = trained(300)
    tokenizer = Tokenizer(tekken(tmp_path, entries))
    for text in some_texts():
        ids = tokenizer.encode(text)
        assert ids == [20 + i for i in by_definition(text, entries[:-5], PATTERN)]
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("<s>[IMG][IMG_BREAK][IMG_END]") == [1, 10, 12, 13]
    assert (tokenizer.names["bos_token"], tokenizer.names["eos_token"]) == ("<s>", "</s>")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("qwen.tiktoken", "QQ== 0\nQg== 5\n", "line 2: 'Qg== 5' is not an entry of rank 1"),
        ("qwen.tiktoken", "@@ 0\n", "is not base64"),
        ("qwen.tiktoken", "QQ== 0\nQQ== 1\n", "two ranks have the same bytes"),
        ("tekken.json", "{}", "has no config and vocab"),
        ("tekken.json", '{"config": {}, "vocab": []}', "default_num_special_tokens"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, file: str, text: str, said: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(SpecError, match=said):
        Tokenizer(tmp_path)
