"""What `opsin merge` does: a base and an adapter read, the whole checked before a byte is written, and written."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from opsin_plugins.blocks.checkpoint import targets
from opsin_plugins.blocks.decoder import HEAD
from opsin_plugins.blocks.model import build_model
from opsin_plugins.loading.files import MISTRAL_PARAMS, read_model_files
from opsin_plugins.loading.open_model import OpenModel, open_files, open_model
from opsin_plugins.loading.registry import Registry
from opsin_plugins.loading.weight_matching import Source, assign
from opsin_plugins.spec import SpecError, TensorInfo
from opsin_server.adapters.adapter_files import read_adapter_files
from opsin_server.adapters.base_model import AdapterLimits, BaseModel
from opsin_server.adapters.convert import Converted, convert
from opsin_server.adapters.problems import BadAdapter
from opsin_server.atomic_directory import check_out, check_room, whole_or_nothing
from opsin_server.copy_files import copy_files
from opsin_server.errors import ConfigError
from opsin_server.merge.changes import Changes, changes_of, merged
from opsin_server.merge.other_files import untie
from opsin_server.merge.quantized import quantized
from opsin_server.merge.tied_head import UntiedHead, untied_head
from opsin_server.merge.weights import write_weights


@dataclass(frozen=True)
class Request:
    base: Path
    adapter: Path
    out: Path
    dequantize: bool = False


@dataclass(frozen=True)
class Merge:
    """All that is known before anything is written. tensors: of the new model, each with the file that it is read
    from, whose name it gets."""

    model: OpenModel
    converted: Converted
    changes: Changes
    tensors: Mapping[str, TensorInfo]
    head: UntiedHead | None

    @property
    def copied(self) -> dict[str, str]:
        return {} if self.head is None else {self.head.name: self.head.copied}


def merge(request: Request) -> str:
    """What was written, in lines for the operator. Raises SpecError or ConfigError, and then has written nothing."""
    out = request.out.resolve()
    if out == request.base.resolve():
        raise ConfigError(f"{request.out} is BASE itself: give a new directory")
    check_out(out)
    model = _base(request)
    planned = _planned(model, request.adapter)
    check_room(out, sum(path.stat().st_size for path in {info.file for info in planned.tensors.values()}))
    with whole_or_nothing(out) as folder:
        left = copy_files(model.files.directory, folder)
        _write(folder, planned)
        _check(folder, planned)
    weights = {info.file.name for info in planned.tensors.values()}
    return _report(request, planned, [name for name in left if name not in weights])


def _base(request: Request) -> OpenModel:
    files = read_model_files(request.base)
    if (how := quantized(files)) is None:
        return open_files(files, Registry())
    said = f"{request.base} is quantized ({how})"
    if request.dequantize:
        raise ConfigError(f"{said}, and cannot be dequantized by this version: merge into the unquantized checkpoint")
    raise ConfigError(
        f"{said}: weights that are rounded and then merged give other answers than the adapter over them. Merge into "
        "the unquantized checkpoint, or say --dequantize"
    )


def _planned(model: OpenModel, adapter: Path) -> Merge:
    if not adapter.is_dir():
        raise ConfigError(f"{adapter} is not a directory (nothing is downloaded: fetch the adapter first)")
    base = BaseModel(model, AdapterLimits(rank=sys.maxsize))
    tensors = dict(model.files.tensors)
    shapes = {
        name: place.shape for name, place in targets(build_model(model.spec, model.registry, device="meta")).items()
    }
    plan: dict[str, Sequence[Source]] = {**assign(tensors, model.architecture.weights(model.spec), shapes)}
    try:
        files = read_adapter_files(adapter)
        converted = convert(files.config, files.weights, base)
        if (head := untied_head(model, converted, plan)) is not None:
            plan[f"{HEAD}.weight"] = [Source(head.name)]
            tensors[head.name] = tensors[head.copied]
        changes = changes_of(converted, plan, base.linears, tensors)
    except BadAdapter as error:
        raise ConfigError(f"{adapter}: {error}") from error
    return Merge(model, converted, changes, tensors, head)


def _write(folder: Path, planned: Merge) -> None:
    stem = "consolidated" if planned.model.files.config.get("model_type") == MISTRAL_PARAMS else "model"
    make = {name: partial(merged, changes=changes) for name, changes in planned.changes.items()}
    write_weights(folder, planned.tensors, make, planned.copied, stem)
    if planned.head is not None:
        untie(folder)


def _check(folder: Path, planned: Merge) -> None:
    """Raises SpecError unless what was written is read as the model that was meant."""
    found = open_model(folder)
    expected = {name: replace(info, file=folder / info.file.name) for name, info in planned.tensors.items()}
    spec = planned.model.spec if planned.head is None else planned.head.spec
    if found.spec != spec or dict(found.files.tensors) != expected:
        raise SpecError("the directory as written describes another model than the base with its adapter")


def _report(request: Request, planned: Merge, left: Sequence[str]) -> str:
    converted = planned.converted
    groups = ", ".join(f"{count} {group}" for group, count in converted.targets.items())
    lines = [
        ("written", str(request.out)),
        ("changed", f"{len(planned.changes)} of {len(planned.tensors)} tensors"),
        ("layers", f"{groups or 'none'}, of rank {converted.rank} at most"),
    ]
    if converted.projector:
        lines.append(("projector", f"{converted.projector} tensors as they were trained"))
    if planned.head is not None:
        lines.append(("output head", f"{planned.head.name}, a tensor of its own now: it was the embedding"))
    lines += [("note", note) for note in converted.notes]
    if left:
        lines.append(("left behind", ", ".join(left)))
    table = "\n".join(f"{name:<15}{value}" for name, value in lines)
    return f"{table}\n\nServe it:\n\nopsin serve {shlex.quote(str(request.out))}"
