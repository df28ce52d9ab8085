"""Weight rules read backwards: which tensors a checkpoint must have to fill a model, and such a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from opsin_plugins.blocks.checkpoint import targets
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.model import Model
from opsin_plugins.conformance.verdicts import Failed
from opsin_plugins.loading.files import MISTRAL_PARAMS
from opsin_plugins.spec import Concat, ModelFiles, Rename, Reorder, Rule, Split
from opsin_plugins.spec.weight_rules import filled, name_pattern

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Published:
    """A tensor under its published name. target: the parameter that it goes to, or the first of several; linear:
    whether that is the weight of a linear."""

    shape: Shape
    target: str
    linear: bool = False


def invert(rules: Sequence[Rule], model: Model, within: str = "") -> dict[str, Published]:
    """Names as the rules have them, in the dialect that needs no Prefix. within: what the names of the parameters
    begin with. Raises Failed for a parameter that no rule gives."""
    shapes = {name: target.shape for name, target in targets(model).items() if name.startswith(within)}
    segments = {
        f"{path}.{kind}": tuple(module.segments)
        for path, module in model.named_modules()
        if isinstance(module, Linear)
        for kind in ("weight", "bias")
    }
    found: dict[str, Published] = {}
    orphans = []
    for target, shape in shapes.items():
        sources = next(_sources_of(target, rules, shapes, segments.get(target, ())), None)
        if sources is None:
            orphans.append(target)
            continue
        linear = target in segments and len(shape) == 2
        for name, part in sources.items():
            found.setdefault(name, Published(part, target, linear))
    if orphans:
        raise Failed(f"no rule gives {len(orphans)} of {len(shapes)} weights: {', '.join(orphans[:6])}")
    return found


def _sources_of(
    target: str, rules: Sequence[Rule], shapes: Mapping[str, Shape], segments: Sequence[int]
) -> Iterator[dict[str, Shape]]:
    """What each rule that gives `target` would read it from."""
    shape = shapes[target]
    for rule in rules:
        if isinstance(rule, Rename) and (groups := _match(rule.target, target)) is not None:
            yield {filled(rule.source, groups): _before(rule.reorder, shape)}
        elif isinstance(rule, Concat) and (groups := _match(rule.target, target)) is not None:
            rows = _rows(target, shape[0], len(rule.sources), segments)
            reorders = rule.reorder or (None,) * len(rows)
            yield {
                filled(source, groups): _before(reorder, (n, *shape[1:]))
                for source, reorder, n in zip(rule.sources, reorders, rows, strict=True)
            }
        elif isinstance(rule, Split):
            for mine in rule.targets:
                if (groups := _match(mine, target)) is not None:
                    total = sum(shapes[filled(other, groups)][0] for other in rule.targets)
                    yield {filled(rule.source, groups): (total, *shape[1:])}


def _rows(target: str, total: int, parts: int, segments: Sequence[int]) -> Sequence[int]:
    """How many rows each source of a Concat has: a linear knows, any other weight is cut evenly."""
    if len(segments) == parts:
        return segments
    if total % parts:
        raise Failed(f"{target}: {total} rows from {parts} sources, and nothing says how many from each")
    return (total // parts,) * parts


def _before(reorder: Reorder | None, shape: Shape) -> Shape:
    """The published shape of what has this shape once it is reordered."""
    if reorder is None or reorder.axis is not None:
        return shape
    return tuple(shape[reorder.order.index(i)] for i in range(len(shape)))


def _match(pattern: str, name: str) -> dict[str, str] | None:
    found = name_pattern(pattern).fullmatch(name)
    return None if found is None else found.groupdict()


def random_weights(published: Mapping[str, Published], seed: int = 0) -> dict[str, Tensor]:
    """Matrices large enough that attention is not uniform; norms, gates and biases off their neutral values, where a
    mistake would not show."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, tensor in published.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if len(tensor.shape) > 1:
            made[name] = noise * noise[0].numel() ** -0.5
        elif "gate" in tensor.target:
            made[name] = 0.8 + 0.1 * noise
        else:
            made[name] = (1.0 if tensor.target.endswith("weight") else 0.0) + 0.1 * noise
    return made


def write(directory: Path, example: ModelFiles, weights: Mapping[str, Tensor]) -> None:
    """A checkpoint directory without a tokenizer."""
    own = example.config.get("model_type") == MISTRAL_PARAMS
    config = {k: v for k, v in example.config.items() if not (own and k == "model_type")}
    (directory / ("params.json" if own else "config.json")).write_text(json.dumps(config))
    if example.preprocessor:
        (directory / "preprocessor_config.json").write_text(json.dumps(dict(example.preprocessor)))
    save_file(dict(weights), directory / "model.safetensors", metadata={"format": "pt"})
