"""Which files of a checkpoint directory are its weights, and what tensors their headers name.

People's directories hold more than one model's weights: Mistral's own form beside the sharded one, an adapter, the
optimizer's state, the shards of an earlier save, files that an archive program left. Sources of the order:
transformers' `from_pretrained` and vLLM's loader; where those two would read different files, neither is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from safetensors import SafetensorError, safe_open

from opsin_plugins.loading.read_json import read_json
from opsin_plugins.spec import SpecError, TensorInfo

# Tensors alone, never code: what torch reads with weights_only is copied shard by shard.
CONVERT = (
    "import glob, torch, safetensors.torch as s; [s.save_file({k: v.clone() for k, v in torch.load(f, mmap=True, "
    "weights_only=True).items()}, f[:-3] + 'safetensors', {'format': 'pt'}) for f in glob.glob('pytorch_model*.bin')]"
)
INDEX = "model.safetensors.index.json"
UNREADABLE = (".bin", ".pt", ".pth", ".ckpt", ".gguf")
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
# Not a model's weights: hidden files (macOS leaves `._model.safetensors`), adapters, the state of a training.
OTHERS = re.compile(r"\..*|(adapter|optimizer|scheduler|scaler|random_states|rng_state|training)[^/]*\.safetensors")
MAX_HEADER_BYTES = 128 * 2**20
COMPARED_BYTES = 2**20
SAMPLED_BYTES = 4096


@dataclass(frozen=True)
class WeightFiles:
    """tensors: each with its file. ignored: names of weight files in the directory that are not read."""

    tensors: Mapping[str, TensorInfo]
    ignored: tuple[str, ...] = ()


def find_weights(directory: Path, stem: str) -> WeightFiles:
    """The weights of a directory. stem: what their files are called, "model", or "consolidated" in Mistral's form.

    What `{stem}.safetensors.index.json` names counts, if all of it is there; else `{stem}.safetensors`; else the one
    complete set of numbered shards; else all the safetensors that there are. Raises SpecError when two of these stand
    side by side, or none does.
    """
    there = sorted(path.name for path in directory.iterdir() if path.name.endswith(".safetensors") and path.is_file())
    names = [name for name in there if not OTHERS.fullmatch(name) and not _of_other_form(name, stem)]
    index = _read_index(directory, f"{stem}.safetensors.index.json")
    chosen = _choose(directory, stem, names, index)
    tensors = _tensors(directory, chosen, index if index is not None and set(index.values()) == set(chosen) else None)
    unread = [path.name for path in directory.iterdir() if path.suffix in UNREADABLE and path.is_file()]
    return WeightFiles(tensors, tuple(sorted({*there, *unread} - set(chosen))))


def mistrals_form(directory: Path) -> Literal["alone", "too", "absent"]:
    """Whether the directory has weights in the form of Mistral's own programs, alone or beside others."""
    names = [path.name for path in directory.glob("*.safetensors") if not OTHERS.fullmatch(path.name)]
    of_it = [_of_other_form(name, "model") for name in names]
    return "absent" if not any(of_it) else "alone" if all(of_it) else "too"


def _of_other_form(name: str, stem: str) -> bool:
    """Mistral's own files beside those that transformers reads."""
    return stem != "consolidated" and name.startswith("consolidated")


def _read_index(directory: Path, name: str) -> Mapping[str, str] | None:
    """Tensor to file, by the index of sharded weights; None: there is none."""
    path = directory / name
    if not path.is_file():
        return None
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict):
        raise SpecError(f"{path} has no weight_map")
    for file in set(found.values()):
        if not isinstance(file, str) or Path(file).name != file:
            raise SpecError(f"{name} names {file!r}, which is no file of {directory}")
    return found


def _choose(directory: Path, stem: str, names: Sequence[str], index: Mapping[str, str] | None) -> list[str]:
    single = f"{stem}.safetensors"
    indexed = sorted(set(index.values())) if index is not None else []
    missing = [name for name in indexed if not (directory / name).is_file()]
    if indexed and not missing:
        if single in names and single not in indexed and not _holds_the_same(directory, single, indexed):
            raise SpecError(
                f"{directory} has {single} beside the {len(indexed)} shards that {single}.index.json names, and "
                "programs differ in which of them they read: remove those that are not this model's"
            )
        return indexed
    if single in names:
        return [single]
    if missing:
        raise SpecError(f"{single}.index.json names {missing[0]}, which is not there (is the download complete?)")
    complete = _complete_sets(names)
    if len(complete) > 1:
        raise SpecError(f"{directory} has {len(complete)} sets of shards ({', '.join(complete)}): remove all but one")
    if complete:
        return next(iter(complete.values()))
    if shards := [name for name in names if SHARD.fullmatch(name)]:
        raise SpecError(
            f"{directory} has {len(shards)} shards, as {shards[0]}, and misses others (is the download complete?)"
        )
    if not names:
        raise SpecError(_no_weights(directory))
    return list(names)


def _complete_sets(names: Iterable[str]) -> dict[str, list[str]]:
    """Numbered shards whose whole number is there, by what they have in common."""
    sets: dict[str, list[str]] = {}
    for name in names:
        if found := SHARD.fullmatch(name):
            sets.setdefault(f"{found['stem']}-*-of-{found['count']}.safetensors", []).append(name)
    return {common: files for common, files in sets.items() if len(files) == int(files[0].rsplit("-", 1)[1][:5])}


def _no_weights(directory: Path) -> str:
    here = sorted(path.name for path in directory.iterdir())
    if "adapter_config.json" in here:
        return f"{directory} is an adapter, not a model: give the directory of the model that it belongs to"
    if other := next((name for name in here if name.endswith(UNREADABLE) and not name.startswith(".")), None):
        return (
            f"{other}: only safetensors are read, since other formats can run code when loaded. Convert the files "
            f'where you trust them, in their folder: python -c "{CONVERT}"'
        )
    if mistral := next((name for name in here if _of_other_form(name, "model")), None):
        return f"{directory} has {mistral}, of Mistral's own form, and no params.json that would say what model it is"
    return f"{directory} has no *.safetensors"


def _tensors(directory: Path, files: Sequence[str], index: Mapping[str, str] | None) -> dict[str, TensorInfo]:
    """Every tensor's file, type and shape, from the headers. index: decides where a tensor stands in two files."""
    tensors: dict[str, TensorInfo] = {}
    for name in files:
        for key, info in read_header(directory / name).items():
            if index is not None and index.get(key, name) != name:
                continue
            if key in tensors:
                raise SpecError(f"{key} is in both {tensors[key].file.name} and {name}")
            tensors[key] = info
    for key, name in (index or {}).items():
        if key not in tensors:
            raise SpecError(f"the index says that {key} is in {name}, and it is not")
    return tensors


def read_header(file: Path) -> dict[str, TensorInfo]:
    try:
        os.fsencode(file).decode("utf-8")
    except UnicodeDecodeError:
        raise SpecError(f"{file}: the safetensors library opens no path that is not UTF-8: rename it") from None
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
            return {k: TensorInfo(file, s.get_dtype(), tuple(s.get_shape())) for k, s in slices.items()}
    except (SafetensorError, OSError) as error:
        with file.open("rb") as opened:
            pointer = opened.read(20).startswith(b"version https://git")
        why = "a pointer of Git LFS: run `git lfs pull` there" if pointer else "is the download complete?"
        raise SpecError(f"{file}: {error} ({why})") from error


def _holds_the_same(directory: Path, single: str, shards: Sequence[str]) -> bool:
    """Whether a file and a set of shards hold the same tensors, by their headers and by the first bytes of each tensor:
    two copies of one model differ nowhere, two models of one shape nearly everywhere."""
    whole = read_header(directory / single)
    parts = {key: info for name in shards for key, info in read_header(directory / name).items()}
    return whole.keys() == parts.keys() and all(_starts_alike(key, whole[key], parts[key]) for key in whole)


def _starts_alike(key: str, one: TensorInfo, two: TensorInfo) -> bool:
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return False
    pieces = []
    for file in (one.file, two.file):
        at, end = _extent(file, key)
        with file.open("rb") as opened:
            opened.seek(at)
            pieces.append(opened.read(min(end - at, SAMPLED_BYTES)))
    return pieces[0] == pieces[1]


def same_bytes(tensors: Mapping[str, TensorInfo], first: str, second: str) -> bool:
    """Whether two stored tensors are equal, byte for byte; packed ones are taken for different. Reads no
    further than to the first difference."""
    one, two = tensors[first], tensors[second]
    if one.packing is not None or two.packing is not None:
        return False
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return False
    (at, end), (other, _) = _extent(one.file, first), _extent(two.file, second)
    with one.file.open("rb") as left, two.file.open("rb") as right:
        left.seek(at)
        right.seek(other)
        while at < end:
            count = min(end - at, COMPARED_BYTES)
            if left.read(count) != right.read(count):
                return False
            at += count
    return True


def _extent(file: Path, key: str) -> tuple[int, int]:
    with file.open("rb") as opened:
        found = read_extents(opened)[key]
    return found.begin, found.end


class Extent(NamedTuple):
    """A tensor where it is stored: dtype and shape as of TensorInfo, and where in the file its bytes begin and end."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_extents(opened: BinaryIO) -> dict[str, Extent]:
    """Of every tensor of an opened file that `read_header` takes. The format: 8 bytes with the header's length, the
    header, the data. Raises SpecError when it is no such file any more."""
    length = int.from_bytes(opened.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise SpecError(f"{opened.name}: a header of {length} bytes; the limit is {MAX_HEADER_BYTES}")
    try:
        header = json.loads(opened.read(length))
        return {
            key: Extent(one["dtype"], tuple(one["shape"]), *(8 + length + at for at in one["data_offsets"]))
            for key, one in header.items()
            if key != "__metadata__"
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SpecError(f"{opened.name}: its header cannot be read: {error}") from error
