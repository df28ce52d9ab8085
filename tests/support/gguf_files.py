"""GGUF files as llama.cpp's own converter writes them, through the `gguf` package."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFReader, GGUFValueType, GGUFWriter, TokenType, get_tensor_name_map, quants
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from opsin_plugins.loading.gguf.container import read_container
from opsin_plugins.loading.gguf.decoder import NAMES, PARTS
from opsin_plugins.spec import SpecError

TURNED = ("llama", "mistral3")  # architectures whose queries and keys the converter turns

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass(frozen=True)
class Part:
    """A tensor of a file. numbers: a model's own, or some of its rows. heads: how many there are, where llama.cpp turns
    neighbours, so that halves are to become some."""

    name: str
    numbers: Tensor
    heads: int | None = None


def write_llama(
    path: Path,
    model: Any,
    kinds: Mapping[str, Kind],
    extra: Mapping[str, Tensor] | None = None,
    tensors_a_part: int = 0,
) -> Path:
    """A tiny Llama of transformers'. kinds: of tensors, by parts of their names. tensors_a_part: 0: all in one file."""
    writer = GGUFWriter(path, "llama", split_max_tensors=tensors_a_part)
    add_sizes(writer, model.config)
    add_sentencepiece(writer, model.config.vocab_size)
    add_parts(writer, decoder_parts(model.config, model.state_dict(), "llama"), kinds)
    for name, tensor in (extra or {}).items():
        add_tensor(writer, name, tensor, Kind.F32)
    finish(writer)
    return path


def add_sizes(writer: GGUFWriter, config: Any) -> None:
    """Of a language model."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if (size := getattr(config, "head_dim", None)) is not None:
        writer.add_key_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def decoder_parts(config: Any, state: Mapping[str, Tensor], architecture: str) -> Iterator[Part]:
    """state: a language model's, by the names that it has alone."""
    names = get_tensor_name_map(MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in state.items():
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if own is None or (own == "output.weight" and config.tie_word_embeddings):
            continue
        yield Part(own, tensor, heads.get(own.split(".")[-2]) if architecture in TURNED else None)


def kind_of(part: Part, kinds: Mapping[str, Kind]) -> Kind:
    """Single rows stay F32; a row of which blocks would not fit is F16, as llama-quantize has it."""
    kind = next((kind for word, kind in kinds.items() if word in part.name), Kind.F32)
    if part.numbers.dim() < 2:
        return Kind.F32
    return Kind.F16 if part.numbers.shape[-1] % 32 and kind not in (Kind.F32, Kind.BF16) else kind


def add_parts(writer: GGUFWriter, parts: Iterable[Part], kinds: Mapping[str, Kind]) -> None:
    for part in parts:
        stored = part.numbers if part.heads is None else turned(part.numbers, part.heads)
        add_tensor(writer, part.name, stored, kind_of(part, kinds))


def round_parts(parts: Iterable[Part], kinds: Mapping[str, Kind]) -> None:
    """The model's numbers become those that a file of these kinds means. (Blocks lie within a row.)"""
    for part in parts:
        kind = kind_of(part, kinds)
        if kind != Kind.F32:
            blocks = quants.quantize(part.numbers.detach().float().contiguous().numpy(), kind)
            part.numbers.copy_(torch.from_numpy(quants.dequantize(blocks, kind)))


def turned(weight: Tensor, heads: int) -> Tensor:
    """As llama.cpp has the queries of a Llama: halves become neighbours."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def add_tensor(writer: GGUFWriter, name: str, tensor: Tensor, kind: Kind) -> None:
    numbers = tensor.detach().float().contiguous().numpy()
    if kind == Kind.F32:
        writer.add_tensor(name, numbers)
        return
    writer.add_tensor(name, quants.quantize(numbers, kind), raw_dtype=kind)


def add_sentencepiece(writer: GGUFWriter, size: int) -> None:
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *(f"▁{i}" for i in range(size - 259))]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces[:size])
    writer.add_token_scores([-float(i) for i in range(size)])
    writer.add_token_types((kinds + [TokenType.NORMAL] * size)[:size])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def add_byte_pairs(writer: GGUFWriter, size: int, special: Mapping[int, str], pre: str) -> None:
    """A vocabulary of bytes, as far as it reaches, and of one pair of them. special: tokens by their ids."""
    plain: list[str] = [chr(code) for code in _byte_characters()]
    free = [i for i in range(size) if i not in special]
    texts = [*plain[: len(free) - 1], "th", *(f"[PAD{i}]" for i in range(size))]
    found = dict(zip(free, texts, strict=False)) | dict(special)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([found[i] for i in range(size)])
    writer.add_token_types([_token_type(i, found[i], special) for i in range(size)])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def add_published_pairs(writer: GGUFWriter, document: Mapping[str, Any], pre: str) -> None:
    """document: a tokenizer.json with byte pairs."""
    special = {token["id"]: token["content"] for token in document["added_tokens"]}
    texts = {number: text for text, number in document["model"]["vocab"].items()} | special
    merges = document["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([texts[i] for i in range(len(texts))])
    writer.add_token_types([_token_type(i, texts[i], special) for i in range(len(texts))])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])


def _token_type(number: int, text: str, special: Mapping[int, str]) -> TokenType:
    if number in special:
        return TokenType.CONTROL
    return TokenType.UNUSED if text.startswith("[PAD") else TokenType.NORMAL


def _byte_characters() -> Sequence[int]:
    """GPT-2's: bytes that can be printed stand for themselves, and the others for characters from 256 on."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*printed, *range(256, 256 + 256 - len(printed))]


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rewritten(
    file: Path,
    to: Path,
    fields: Mapping[str, Any] | None = None,
    tensors: Mapping[str, str | None] | None = None,
    more: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> Path:
    """The same file with other fields (None: without), with tensors under other names (None: without), and more of
    them."""
    read, fields, tensors = GGUFReader(file), fields or {}, tensors or {}
    writer = GGUFWriter(to, fields.get("general.architecture") or read.fields["general.architecture"].contents())
    kept = {key: field for key, field in read.fields.items() if not key.startswith("GGUF.") and key not in fields}
    for key, field in kept.items():
        if key != "general.architecture":
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    for key, value in fields.items():
        if value is not None and key != "general.architecture":
            writer.add_key_value(key, value, GGUFValueType.get_type(value))
    for tensor in read.tensors:
        if (name := tensors.get(tensor.name, tensor.name)) is not None:
            writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, numbers in (more or {}).items():
        writer.add_tensor(name, numbers)
    finish(writer)
    return to


def mutated(whole: bytes, end: int, chance: random.Random) -> bytes:
    """Some bytes before `end` changed, and maybe cut short."""
    data = bytearray(whole)
    for _ in range(chance.randrange(1, 9)):
        data[chance.randrange(end)] = chance.choice([0, 1, 255, chance.randrange(256)])
    if chance.random() < 0.3:
        del data[chance.randrange(len(data)) :]
    return bytes(data)


def gguf_name(name: str) -> str | None:
    """Of a tensor that transformers has."""
    for own, theirs in NAMES.items():
        if name == theirs:
            return own
    parts = {theirs: own for own, theirs in PARTS.items()}
    head, _, rest = name.removeprefix("model.layers.").partition(".")
    module, _, kind = rest.rpartition(".")
    return f"blk.{head}.{parts[module]}.{kind}" if module in parts else None


def random_blocks(kind: Kind, count: int, size: int, halves: list[int], seed: int = 0) -> np.ndarray[Any, Any]:
    """Blocks of any bytes but for their float16s, which are small numbers. halves: where these lie."""
    chance = np.random.default_rng(seed)
    blocks = chance.integers(0, 256, (count, size), dtype=np.uint8)
    for at in halves:
        blocks[:, at : at + 2] = (chance.standard_normal(count) / 8).astype(np.float16)[:, None].view(np.uint8)
    return blocks


def check_mutations(file: Path, count: int, attempt: Callable[[bytes], object]) -> None:
    """attempt: with a file's bytes, those of its header changed or the file cut anywhere. Each is opened, or refused in
    a sentence, in bounded memory."""
    whole, chance, refused = file.read_bytes(), random.Random(0), 0
    end = min(tensor.begin for tensor in read_container(file).tensors.values())
    tracemalloc.start()
    for _ in range(count):
        try:
            attempt(mutated(whole, end, chance))
        except SpecError:
            refused += 1
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused > count / 10
    assert most < 64 * 2**20
