"""Vocabularies published as ranked byte strings (tiktoken's form, and Mistral's tekken) as a tokenizer.json.

A piece of text is split into bytes, and the neighbours whose concatenation has the lowest rank are joined until none
are left. So every way to cut an entry into two entries is a merge, in the order of the entry's rank: the same function
as byte-pair merges in their order. Source: the tiktoken README.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opsin_plugins.loading.read_json import MAX_BYTES, read_json
from opsin_plugins.spec import SpecError
from opsin_server.text.token_bytes import BYTE_OF

Json = dict[str, Any]
CHAR_OF = {byte: char for char, byte in BYTE_OF.items()}

# Qwen's published tokenizer keeps these in code.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
QWEN_VISION = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>")
QWEN_NAMES = {"eos_token": "<|endoftext|>"}
# Of tekken files that do not list theirs, in the order of their ids.
TEKKEN_SPECIAL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    "[SUFFIX]",
)
TEKKEN_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def convert(directory: Path) -> tuple[Json, Mapping[str, str]] | None:
    """The tokenizer.json of a directory that has ranks instead, and what chat templates call its tokens; None: it has
    none. Raises SpecError for a file that does not hold what it should."""
    if (tekken := directory / "tekken.json").is_file():
        return _tekken(tekken), TEKKEN_NAMES
    if (qwen := directory / "qwen.tiktoken").is_file():
        return _qwen(qwen), QWEN_NAMES
    return None


def _qwen(path: Path) -> Json:
    if path.stat().st_size > MAX_BYTES:
        raise SpecError(f"{path} has {path.stat().st_size} bytes; the limit is {MAX_BYTES}")
    entries = []
    for number, line in enumerate(path.read_text("ascii", "replace").splitlines()):
        text, _, rank = line.partition(" ")
        if not rank.isdigit() or int(rank) != number:
            raise SpecError(f"{path}, line {number + 1}: {line[:60]!r} is not an entry of rank {number}")
        entries.append(_bytes(text, path))
    special = {len(entries) + i: text for i, text in enumerate((*QWEN_SPECIAL, *QWEN_VISION))}
    return _document(entries, 0, special, QWEN_PATTERN, {"type": "NFC"})


def _tekken(path: Path) -> Json:
    document = read_json(path)
    config, vocab = document.get("config"), document.get("vocab")
    if not isinstance(config, Mapping) or not isinstance(vocab, Sequence):
        raise SpecError(f"{path} has no config and vocab")
    reserved, total, pattern = (config.get(k) for k in ("default_num_special_tokens", "default_vocab_size", "pattern"))
    if not isinstance(reserved, int) or not isinstance(total, int) or not isinstance(pattern, str):
        raise SpecError(f"{path}: config has no default_num_special_tokens, default_vocab_size and pattern")
    listed = document.get("special_tokens")
    names = [str(entry["token_str"]) for entry in listed] if isinstance(listed, list) else TEKKEN_SPECIAL
    special = {i: names[i] if i < len(names) else f"<SPECIAL_{i}>" for i in range(reserved)}
    entries = [_bytes(str(entry["token_bytes"]), path) for entry in vocab[: total - reserved]]
    return _document(entries, reserved, special, pattern, None)


def _bytes(text: str, path: Path) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise SpecError(f"{path}: {text[:60]!r} is not base64") from error


def _document(
    entries: Sequence[bytes], first: int, special: Mapping[int, str], pattern: str, normalizer: Json | None
) -> Json:
    """entries: by rank; the id of rank r is first + r."""
    written = {entry: "".join(CHAR_OF[byte] for byte in entry) for entry in entries}
    if len(written) != len(entries):
        raise SpecError("two ranks have the same bytes")
    # The library gives ids past the vocabulary to tokens that are not in it: those before it must be entries.
    vocab = {text: i for i, text in special.items() if i < first}
    vocab |= {text: first + rank for rank, text in enumerate(written.values())}
    if len(vocab) != len(entries) + first:
        raise SpecError("a special token and an entry have the same text")
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text, **token} for i, text in sorted(special.items())],
        "normalizer": normalizer,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": vocab,
            "merges": _merges(entries, written),
        },
    }


def _merges(entries: Sequence[bytes], written: Mapping[bytes, str]) -> list[list[str]]:
    merges = []
    for entry in entries:
        for cut in range(1, len(entry)):
            left, right = written.get(entry[:cut]), written.get(entry[cut:])
            if left is not None and right is not None:
                merges.append([left, right])
    return merges
