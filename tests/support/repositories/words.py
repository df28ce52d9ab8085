"""Tiny tokenizers in the files of the published ones: byte-level pairs as of Qwen2, Llama 3, SmolVLM and tekken, and
sentencepiece's as of Llama 2. The special tokens are the families' own, in their places; all else is small."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

Json = dict[str, Any]

CORPUS = [
    "What is in this picture? A red circle and two blue squares, above a green triangle.",
    "Describe the images one by one: the first shows a cat, the second shows a dog.",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nUser: Assistant: system",
] * 4
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
    r"|\s+"
)
QWEN = GPT4.replace("{1,3}", "")
ENTRIES = 300  # of bytes and joined pairs


@dataclass(frozen=True)
class Words:
    """The files of a tokenizer, and ids by the strings of special tokens (others by `id`).

    size: ids that there are.
    """

    files: Mapping[str, str | bytes]
    ids: Mapping[str, int]
    size: int

    def __getitem__(self, text: str) -> int:
        return self.ids[text]


@dataclass(frozen=True)
class Marker:
    """An added token. special: False for those that stay in a decoded text."""

    text: str
    special: bool = True
    normalized: bool = False

    def entry(self) -> Json:
        flags = {"single_word": False, "lstrip": False, "rstrip": False}
        return {"content": self.text, **flags, "normalized": self.normalized, "special": self.special}


@cache
def ranks() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Entries in the alphabet of byte-level tokenizers, and the pairs that made them: one rank order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=ENTRIES, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    pairs = tuple((a, b) for a, b in model["merges"])
    return (*alphabet, *(a + b for a, b in pairs)), pairs


def markers(*texts: str | Marker) -> list[Marker]:
    return [text if isinstance(text, Marker) else Marker(text) for text in texts]


def byte_level(
    special: Sequence[str | Marker],
    config: Json,
    *,
    front: Sequence[str | Marker] = (),
    pattern: str | None = QWEN,
    opens_with: str | None = None,
    normalizer: Json | None = None,
    files: Sequence[str] = (),
) -> Words:
    """tokenizer.json and tokenizer_config.json.

    special: in the order of their ids, behind the entries. front: in front of them, in the vocabulary. pattern: what
    texts are split at (None: as GPT-2). opens_with: the token that the post-processor puts in front. files: further
    ones, of vocab.json, merges.txt, special_tokens_map.json, added_tokens.json.
    """
    entries, pairs = ranks()
    before, behind = markers(*front), markers(*special)
    added = [*before, *behind]
    ids = {marker.text: i for i, marker in enumerate(before)}
    vocab = {**ids, **{text: len(before) + i for i, text in enumerate(entries)}}
    ids |= {marker.text: len(vocab) + i for i, marker in enumerate(behind)}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pattern is None}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[marker.text], **marker.entry()} for marker in added],
        "normalizer": normalizer,
        "pre_tokenizer": bytes_alone
        if pattern is None
        else {"type": "Sequence", "pretokenizers": [split, bytes_alone]},
        "post_processor": _opening(opens_with, ids)
        or {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in pairs],
        },
    }
    lists = {"added_tokens_decoder": {str(ids[marker.text]): marker.entry() for marker in added}}
    written = {
        "tokenizer.json": json.dumps(document, ensure_ascii=False),
        "tokenizer_config.json": json.dumps({**lists, **config}),
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in pairs)]),
        "added_tokens.json": json.dumps(ids),
        "special_tokens_map.json": json.dumps(_named(config)),
    }
    wanted = ("tokenizer.json", "tokenizer_config.json", *files)
    return Words({name: written[name] for name in wanted}, ids, len(entries) + len(added))


def sentencepiece(
    special: Sequence[str | Marker], config: Json, *, legacy: bool = True, files: Sequence[str] = ()
) -> Words:
    """As Llama 2's: blanks as U+2581, bytes for what is missing, BOS in front. special: behind the entries."""
    opening = ["<unk>", "<s>", "</s>"]
    alphabet = sorted({"▁" if char == " " else char for text in CORPUS for char in text if char != "\n"})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + 40, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    pieces = [*(a + b for a, b in model["merges"]), *alphabet]  # (sentencepiece lists its characters last)
    entries = [*opening, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocab = {text: i for i, text in enumerate(dict.fromkeys(entries))}
    added = markers(*opening, *special)
    ids = {marker.text: vocab.get(marker.text, len(vocab) + i - 3) for i, marker in enumerate(added)}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[marker.text], **marker.entry()} for marker in added],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
        if legacy
        else None,
        "pre_tokenizer": None
        if legacy
        else {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        "post_processor": _opening("<s>", ids),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [" ".join(pair) for pair in model["merges"]],
        },
    }
    lists = {"added_tokens_decoder": {str(ids[marker.text]): marker.entry() for marker in added}}
    written: dict[str, str | bytes] = {
        "tokenizer.json": json.dumps(document, ensure_ascii=False),
        "tokenizer_config.json": json.dumps({**lists, **config}),
        "added_tokens.json": json.dumps({marker.text: ids[marker.text] for marker in added[3:]}),
        "special_tokens_map.json": json.dumps({key: Marker(value).entry() for key, value in _named(config).items()}),
        "tokenizer.model": b"\n\x0esentencepiece",  # (nobody reads it where tokenizer.json is)
    }
    wanted = ("tokenizer.json", "tokenizer_config.json", *files)
    return Words({name: written[name] for name in wanted}, ids, 1 + max(*vocab.values(), *ids.values()))


def tekken(special: Sequence[str], version: str) -> Words:
    """tekken.json. special: in the order of their ids, in front of the entries."""
    entries, _ = ranks()
    document = {
        "config": {
            "pattern": GPT4,
            "num_vocab_tokens": len(entries),
            "default_vocab_size": len(entries) + len(special),
            "default_num_special_tokens": len(special),
            "version": version,
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(text).decode(), "token_str": text.decode("utf-8", "replace")}
            for rank, text in enumerate(map(_bytes, entries))
        ],
        "multimodal": {"image_patch_size": 4, "max_image_size": 40},
    }
    if version != "v3":
        document["special_tokens"] = [
            {"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(special)
        ]
    ids = {text: i for i, text in enumerate(special)}
    return Words({"tekken.json": json.dumps(document)}, ids, len(entries) + len(special))


def qwen_tiktoken(special: Sequence[str], config: Json) -> Words:
    """qwen.tiktoken, which does not list the special tokens: they are in its repository's code."""
    entries, _ = ranks()
    lines = [f"{base64.b64encode(_bytes(text)).decode()} {rank}" for rank, text in enumerate(entries)]
    written = {"qwen.tiktoken": "\n".join(lines) + "\n", "tokenizer_config.json": json.dumps(config)}
    ids = {text: len(entries) + i for i, text in enumerate(special)}
    return Words(written, ids, len(entries) + len(special))


def _named(config: Json) -> dict[str, str]:
    return {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}


def _opening(text: str | None, ids: Mapping[str, int]) -> Json | None:
    if text is None:
        return None
    first = {"SpecialToken": {"id": text, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    known = {text: {"id": text, "ids": [ids[text]], "tokens": [text]}}
    return {"type": "TemplateProcessing", "single": [first, a], "pair": [first, a, first, b], "special_tokens": known}


@cache
def _byte_of() -> Mapping[str, int]:
    """GPT-2's alphabet for bytes, as the library has it: printable ones stand for themselves."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    themselves = {char: ord(char) for char in alphabet if ord(char) < 0x100}
    others = [byte for byte in range(256) if byte not in themselves.values()]
    return themselves | dict(zip([char for char in alphabet if ord(char) >= 0x100], others, strict=True))


def _bytes(text: str) -> bytes:
    return bytes(_byte_of()[char] for char in text)
