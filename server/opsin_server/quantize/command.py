"""What `opsin quantize` does: a checkpoint read tensor by tensor, and written with its linears in fewer bits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from opsin_plugins.blocks.checkpoint import targets
from opsin_plugins.blocks.model import build_model
from opsin_plugins.blocks.weight_format import Dense
from opsin_plugins.blocks.weight_policy import EMBEDDING, HEAD, WeightPolicy
from opsin_plugins.loading.open_model import OpenModel, open_model
from opsin_plugins.loading.weight_matching import assign
from opsin_plugins.spec import TensorInfo
from opsin_server.atomic_directory import check_out, check_room, whole_or_nothing
from opsin_server.copy_files import copy_files
from opsin_server.errors import ConfigError
from opsin_server.quantize.schemes import SCHEMES, SchemeName

SHARD_BYTES = 2 * 2**30
NAME = "model-{number:05d}.safetensors"


@dataclass(frozen=True)
class Request:
    model: Path
    out: Path
    scheme: SchemeName
    vision: bool = False


@dataclass(frozen=True)
class Rounded:
    """A weight that was written in fewer bits. error: of its numbers, relative to their size."""

    name: str
    before: int
    after: int
    error: float


def quantize(request: Request) -> str:
    """What was written, in lines for the operator. Raises SpecError or ConfigError, and then has written nothing."""
    out = request.out.resolve()
    check_out(out)
    model = open_model(request.model)
    if request.model.is_file() or any(info.packing is not None for info in model.files.tensors.values()):
        raise ConfigError(f"{request.model} is quantized already: give the unquantized checkpoint")
    chosen, scheme = _chosen(model, request), SCHEMES[request.scheme]
    if not chosen:
        raise ConfigError(f"{request.model} has no weight that {request.scheme} can hold")
    tensors = model.files.tensors
    group = scheme.group([tensors[key].shape[1] for key in chosen])
    chosen = [key for key in chosen if not group or tensors[key].shape[1] % group == 0]
    check_room(out, sum(path.stat().st_size for path in {info.file for info in tensors.values()}))
    with whole_or_nothing(out) as folder:
        copy_files(request.model, folder)
        rounded = _write(folder, tensors, set(chosen), request.scheme, group)
        _configure(folder, scheme.config(group, _ignored(tensors, chosen)))
        open_model(folder)
    return _report(request, rounded, tensors)


def _chosen(model: OpenModel, request: Request) -> list[str]:
    """Published weights of linears that the format can hold; a head stays as it is: few programs read it packed."""
    policy = WeightPolicy(request.scheme, request.vision)
    sketch = build_model(model.spec, model.registry, device="meta")
    places = {name: target.shape for name, target in targets(sketch).items()}
    found = []
    for name, sources in assign(model.files.tensors, model.architecture.weights(model.spec), places).items():
        path, shape = name.removesuffix(".weight"), places[name]
        if path in (HEAD, EMBEDDING) or not name.endswith(".weight") or len(shape) != 2:
            continue
        if policy.choose(path, shape[1], shape[0]) is not Dense:
            found += [source.key for source in sources if _is_whole(model.files.tensors[source.key])]
    return list(dict.fromkeys(found))


def _is_whole(info: TensorInfo) -> bool:
    """A matrix, and no kernel of a convolution."""
    return len(info.shape) == 2


def _write(
    folder: Path, tensors: Mapping[str, TensorInfo], chosen: set[str], scheme: SchemeName, group: int
) -> list[Rounded]:
    """One tensor at a time is a float beside a shard of what is written."""
    rounded: list[Rounded] = []
    shard, size, files = dict[str, Tensor](), 0, list[list[str]]()

    def flush() -> None:
        nonlocal shard, size
        save_file(shard, folder / NAME.format(number=len(files) + 1), {"format": "pt"})
        files.append(list(shard))
        shard, size = {}, 0

    for key, tensor in _stored(tensors):
        made = {key: tensor}
        if key in chosen:
            made, one = _rounded(key, tensor, scheme, group)
            rounded.append(one)
        shard |= {name: part.contiguous() for name, part in made.items()}
        size += sum(part.nbytes for part in made.values())
        if size >= SHARD_BYTES:
            flush()
    flush()
    names = {name: NAME.format(number=i + 1) for i, file in enumerate(files) for name in file}
    total = sum((folder / name).stat().st_size for name in set(names.values()))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return rounded


def _stored(tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, Tensor]]:
    for file in dict.fromkeys(info.file for info in tensors.values()):
        with safe_open(file, framework="pt") as opened:
            for key, info in tensors.items():
                if info.file == file:
                    yield key, opened.get_tensor(key)


def _rounded(key: str, weight: Tensor, scheme: SchemeName, group: int) -> tuple[dict[str, Tensor], Rounded]:
    module, written = key.removesuffix(".weight"), SCHEMES[scheme].write(weight, group)
    size = sum(part.nbytes for part in written.tensors.values())
    error = float((written.meant - weight.float()).norm() / weight.float().norm().clamp(min=1e-12))
    return {f"{module}.{name}": part for name, part in written.tensors.items()}, Rounded(
        key, weight.nbytes, size, error
    )


def _ignored(tensors: Mapping[str, TensorInfo], chosen: list[str]) -> list[str]:
    """Modules that stay as they are, as other programs match them: these may have put something in front of the names,
    so they are patterns; of a part of which nothing was rounded, one."""
    matrices = [
        key.removesuffix(".weight") for key, info in tensors.items() if len(info.shape) > 1 and key.endswith("t")
    ]
    rounded = {key.removesuffix(".weight") for key in chosen}
    parts = {_part(name) for name in rounded}
    found = ["lm_head"]
    for name in matrices:
        if name in rounded or name == "lm_head":
            continue
        alone = _part(name) not in parts
        found.append(rf"re:(.*\.)?{re.escape(_part(name))}(\..*)?$" if alone else rf"re:(.*\.)?{re.escape(name)}$")
    return list(dict.fromkeys(found))


def _part(name: str) -> str:
    """What it belongs to: "visual" of visual.blocks.0.attn.qkv and of model.visual.blocks.0.attn.qkv."""
    return name.removeprefix("model.").split(".")[0]


def _configure(folder: Path, config: Mapping[str, object]) -> None:
    path = folder / "config.json"
    document = json.loads(path.read_text("utf-8"))
    path.write_text(
        json.dumps({**document, "quantization_config": config}, indent=2, ensure_ascii=False) + "\n", "utf-8"
    )


def _report(request: Request, rounded: list[Rounded], tensors: Mapping[str, TensorInfo]) -> str:
    before, after = sum(one.before for one in rounded), sum(one.after for one in rounded)
    worst = max(rounded, key=lambda one: one.error)
    mean = sum(one.error for one in rounded) / len(rounded)
    sizes = f"{before / 2**20:,.1f} MiB of them became {after / 2**20:,.1f} MiB"
    errors = f"{100 * mean:.2f} % in the mean, at most {100 * worst.error:.2f} % ({worst.name})"
    return "\n".join(
        (
            f"{request.out}: {len(rounded):,} of {len(tensors):,} tensors in {request.scheme}, {sizes}",
            f"error of a weight, relative to its size: {errors}",
            f"opsin serve {request.out}",
        )
    )
