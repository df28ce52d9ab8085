"""Loads tokenizer.json twice over one vocabulary: as it is, and so that no text can become an added token."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from opsin_plugins.loading.gguf.container import is_gguf
from opsin_plugins.loading.read_json import read_json
from opsin_plugins.spec import SpecError
from opsin_server.text.convert_gguf import convert_gguf
from opsin_server.text.convert_tiktoken import convert
from opsin_server.text.token_bytes import BYTE, Json

CONVERT = "transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
OTHER_FORMS = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
NO_MODEL = {"type": "BPE", "vocab": {}, "merges": []}


@dataclass(frozen=True)
class Read:
    """A directory's tokenizer: the parsed file, what it makes, and names of tokens that only this kind of file
    knows."""

    document: Json
    backend: Backend
    names: Mapping[str, str]


def read_tokenizer(directory: Path) -> Read:
    """Raises SpecError when there is none, or it does not load."""
    path, names = directory / "tokenizer.json", dict[str, str]()
    document: Json
    if is_gguf(directory):
        document = convert_gguf(directory)
    elif path.is_file():
        document = read_json(path)
    elif (converted := convert(directory)) is not None:
        document, names = converted[0], dict(converted[1])
    else:
        convertible = any((directory / name).is_file() for name in OTHER_FORMS)
        way = (
            f"make one where you trust the model: {CONVERT}" if convertible else "copy it from where the model is from"
        )
        raise SpecError(f"{directory} has no tokenizer.json; {way}")
    try:
        # (not from_file: the library takes no path that is no UTF-8)
        backend = Backend.from_buffer(path.read_bytes()) if path.is_file() else Backend.from_str(json.dumps(document))
    except Exception as error:  # the library raises a bare Exception
        raise SpecError(f"{path}: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return Read(document, backend, names)


def named_tokens(directory: Path, config: Mapping[str, object]) -> dict[str, str]:
    """bos_token, eos_token, ... of tokenizer_config.json (or the older file beside it); a template's variables."""
    if "added_tokens_decoder" not in config:
        config = {**config, **read_json(directory / "special_tokens_map.json")}
    extra = config.get("extra_special_tokens")
    entries = {name: value for name, value in config.items() if name.endswith("_token")}
    entries |= dict(extra) if isinstance(extra, Mapping) else {}
    found = {name: _content(value) for name, value in entries.items()}
    return {name: text for name, text in found.items() if text}


def add_configured(backend: Backend, names: Iterable[str], config: Mapping[str, object]) -> None:
    """tokenizer_config.json may name tokens that tokenizer.json does not list: they are added, as transformers does."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder")
    decoder = listed if isinstance(listed, Mapping) else {}
    try:
        tokens = [AddedToken(**value) for _, value in sorted(decoder.items(), key=lambda item: int(item[0]))]
    except (TypeError, ValueError) as error:
        raise SpecError(f"tokenizer_config.json: added_tokens_decoder: {error}") from error
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    more = [_content(value) for value in extra] if isinstance(extra, list) else []
    tokens += [AddedToken(text, special=True, normalized=False) for text in dict.fromkeys([*names, *more]) if text]
    for token in tokens:
        if token.content not in known:
            known.add(token.content)
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])


def plain_tokenizer(document: Json, backend: Backend, strings: Iterable[str]) -> Backend:
    """One that has no added tokens, puts nothing in front of a text, and cannot make the entries named `strings`.

    Vocabularies often hold their added tokens as ordinary entries too, and a Unigram model (or BPE that ignores its
    merges) would find them there. Such entries are renamed to a random string, so that no text can reach them.
    """
    held = {text for text in strings if backend.model.token_to_id(text) is not None}
    names = {text: secrets.token_hex(16) for text in _reachable(document["model"], held)}
    head = {
        **document,
        "added_tokens": [],
        "post_processor": None,
        "truncation": None,
        "padding": None,
        "normalizer": _without_prefix(document.get("normalizer")),
        "pre_tokenizer": _without_prefix(document.get("pre_tokenizer")),
        "model": _renamed(document["model"], names) if names else NO_MODEL,
    }
    plain = Backend.from_str(json.dumps(head))
    if not names:
        plain.model = backend.model  # shared: a vocabulary of 150k entries takes 30 MB
    return plain


def _content(value: object) -> str:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _without_prefix(component: Json | None) -> Json | None:
    """The same component without the blank that it would put in front: what it reads stands inside a text."""
    if component is None or component["type"] == "Prepend":
        return None
    for name in ("normalizers", "pretokenizers"):
        if name in component:
            members = [_without_prefix(member) for member in component[name]]
            return {**component, name: [member for member in members if member is not None]}
    if component["type"] == "Metaspace":
        return {**component, "prepend_scheme": "never", "add_prefix_space": False}
    return {**component, "add_prefix_space": False} if component["type"] == "ByteLevel" else component


def _reachable(model: Json, entries: set[str]) -> set[str]:
    """Those that a text can become. Plain BPE makes nothing but its merges' products (4 s less for 150k entries)."""
    special = ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    if "merges" not in model or any(model.get(name) for name in special):
        return entries
    made = {a + b for a, b in _pairs(model)}
    return {text for text in entries if len(text) == 1 or text in made or BYTE.fullmatch(text)}


def _pairs(model: Json) -> Iterable[Sequence[str]]:
    return (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])


def _renamed(model: Json, names: Mapping[str, str]) -> Json:
    changed: dict[str, Any] = dict(model)
    vocab = model["vocab"]
    if isinstance(vocab, list):  # Unigram: pairs of piece and score
        changed["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    else:
        changed["vocab"] = {names.get(piece, piece): index for piece, index in vocab.items()}
    if model.get("unk_token") in names:
        changed["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        skip = len(model.get("continuing_subword_prefix") or "")
        changed["merges"] = [[a, b] for a, b in _pairs(model) if names.keys().isdisjoint((a, b, a + b[skip:]))]
    return changed
