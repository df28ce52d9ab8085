"""The files of an adapter: which of a directory's are read, and what they say. Pickles are never opened.

People's directories are whole training checkpoints, with optimizer states, tokenizers and model cards; only what is
named here is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from opsin_plugins.loading.read_json import read_json
from opsin_plugins.spec import SpecError
from opsin_server.adapters.peft_config import PeftConfig, read_config
from opsin_server.adapters.problems import BadAdapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TRAINED_PROJECTOR = "non_lora_trainables.safetensors"  # LLaVA's own training leaves the projector there
MISTRAL_WEIGHTS, MISTRAL_CONFIG = "lora.safetensors", "params.json"
RECORD = "opsin_adapter.json"  # what this server writes beside an adapter that it trained
READ = (CONFIG, WEIGHTS, TRAINED_PROJECTOR, MISTRAL_WEIGHTS, MISTRAL_CONFIG, RECORD)
PICKLES = ("adapter_model.bin", "non_lora_trainables.bin", "adapter_model.pt", "pytorch_lora_weights.bin")
MAX_JSON_BYTES = 4 * 2**20
MISTRAL_SCALING = 2.0  # mistral-finetune's default
CONVERT = (
    'python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in '
    "torch.load('NAME.bin', weights_only=True).items()}, 'NAME.safetensors', {'format': 'pt'})\""
)


class AdapterRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What Opsin knows of an adapter that it trained. base: the content digest of the model that it was trained on, as
    `/version` shows it. max_pixels: of a picture, as in training."""

    base: str | None = None
    max_pixels: Annotated[int, Meta(ge=1)] | None = None


@dataclass(frozen=True)
class AdapterFiles:
    """weights: safetensors. kept: all files that were read."""

    config: PeftConfig
    weights: tuple[Path, ...]
    kept: tuple[Path, ...]
    record: AdapterRecord = field(default_factory=AdapterRecord)


def read_adapter_files(directory: Path) -> AdapterFiles:
    """Raises BadAdapter for a directory that is no adapter, or one that is not served."""
    there = {name: directory / name for name in READ if (directory / name).is_file()}
    if CONFIG in there and WEIGHTS in there:
        config = read_config(_json(there[CONFIG]))
        weights = [there[name] for name in (WEIGHTS, TRAINED_PROJECTOR) if name in there]
        if TRAINED_PROJECTOR not in there and (directory / PICKLES[1]).is_file():
            raise BadAdapter(_pickle(PICKLES[1]))
    elif MISTRAL_WEIGHTS in there:
        config = _mistrals(_json(there[MISTRAL_CONFIG]) if MISTRAL_CONFIG in there else {})
        weights = [there[MISTRAL_WEIGHTS]]
    else:
        raise BadAdapter(_what_is_missing(directory, there))
    used = {CONFIG, RECORD, MISTRAL_CONFIG if MISTRAL_WEIGHTS in {file.name for file in weights} else CONFIG}
    kept = [*weights, *(there[name] for name in sorted(used) if name in there)]
    return AdapterFiles(config, tuple(weights), tuple(kept), _record(there))


def _what_is_missing(directory: Path, there: Mapping[str, Path]) -> str:
    if pickle := next((name for name in PICKLES if (directory / name).is_file()), None):
        return _pickle(pickle)
    if CONFIG in there:
        return f"there is no {WEIGHTS} beside {CONFIG}"
    if WEIGHTS in there:
        return f"there is no {CONFIG} beside {WEIGHTS}: neither rank nor scale are known"
    inner = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG}"))
    hint = f" ({', '.join(inner[:4])} in it {'is' if len(inner) == 1 else 'are'})" if inner else ""
    return f"it is no adapter{hint}: there is neither {CONFIG} with {WEIGHTS} nor {MISTRAL_WEIGHTS}"


def _pickle(name: str) -> str:
    stem = name.rpartition(".")[0]
    return (
        f"{name} is a pickle, which can run code when it is read: only safetensors are. Convert it where you trust it: "
        + CONVERT.replace("NAME", stem)
    )


def _mistrals(params: Mapping[str, Any]) -> PeftConfig:
    """mistral-finetune's own form: params.json has a section `lora`; its scale does not depend on the rank."""
    section = params.get("lora") or {}
    if not isinstance(section, dict):
        raise BadAdapter(f"{MISTRAL_CONFIG}: lora is no object")
    rank, scaling = section.get("rank"), section.get("scaling", MISTRAL_SCALING)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise BadAdapter(f"{MISTRAL_CONFIG}: lora.rank is {rank!r}: the rank of {MISTRAL_WEIGHTS} is not known")
    if isinstance(scaling, bool) or not isinstance(scaling, (int, float)):
        raise BadAdapter(f"{MISTRAL_CONFIG}: lora.scaling is {scaling!r}")
    return PeftConfig(rank, float(scaling) * rank)


def _record(there: Mapping[str, Path]) -> AdapterRecord:
    if RECORD not in there:
        return AdapterRecord()
    try:
        return msgspec.convert(_json(there[RECORD]), AdapterRecord)
    except msgspec.ValidationError as error:
        raise BadAdapter(f"{RECORD}: {error}") from error


def _json(file: Path) -> Mapping[str, Any]:
    if (size := file.stat().st_size) > MAX_JSON_BYTES:
        raise BadAdapter(f"{file.name} has {size:,} bytes; the limit is {MAX_JSON_BYTES:,}")
    try:
        return read_json(file)
    except SpecError as error:
        raise BadAdapter(str(error).replace(f"{file.parent}/", "")) from error
