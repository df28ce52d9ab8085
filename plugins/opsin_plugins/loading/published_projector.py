"""The projector as a family publishes it: the modules that hold it, and where each of its tensors lies in the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from opsin_plugins.loading.weight_matching import WeightMatcher
from opsin_plugins.spec import ProjectorSpec, Reorder, Rule, SpecError

PREFIX = "projector."


@dataclass(frozen=True)
class PublishedTensor:
    """target: the model's parameter, "projector.mlp.up.weight". reorder: from the published order to the model's."""

    target: str
    reorder: Reorder | None


@dataclass(frozen=True)
class PublishedProjector:
    """modules: paths of published modules that hold nothing else, as PEFT's `modules_to_save` takes them. tensors: of
    these modules, by published name. (A parameter that belongs to no such module, as LLaVA-NeXT's newline does, can
    be saved by no adapter.)"""

    modules: tuple[str, ...]
    tensors: Mapping[str, PublishedTensor]


def published_projector(rules: Sequence[Rule], keys: Iterable[str], projector: ProjectorSpec) -> PublishedProjector:
    """keys: of the checkpoint. Raises SpecError for a projector that is published in another division than the model
    has it."""
    matcher = WeightMatcher(rules, {f"{PREFIX}{name}": shape for name, shape in projector.parameters().items()})
    tensors: dict[str, PublishedTensor] = {}
    others = []
    for key in keys:
        name = matcher.canonical(key)
        matches = matcher(key)
        if not matches:
            others.append(name)
            continue
        if len(matches) > 1 or matches[0].parts > 1:
            raise SpecError(f"{name}: published as one tensor but several of this model, or the other way around")
        tensors[name] = PublishedTensor(matches[0].target, matches[0].reorder)
    modules = dict.fromkeys(module for name in tensors if (module := _module_of(name, others, list(tensors))))
    inside = {name: found for name, found in tensors.items() if name.startswith(tuple(f"{m}." for m in modules))}
    return PublishedProjector(tuple(modules), inside)


def _module_of(name: str, others: Sequence[str], own: Sequence[str]) -> str | None:
    """The outermost module around a tensor that holds none of the others and is no list, which PEFT cannot save; None:
    there is none."""
    parts = name.split(".")
    for prefix in (".".join(parts[:count]) + "." for count in range(1, len(parts))):
        held = any(other.startswith(prefix) for other in others)
        children = {one.removeprefix(prefix).partition(".")[0] for one in own if one.startswith(prefix)}
        if not held and not all(child.isdecimal() for child in children):
            return prefix.removesuffix(".")
    return None
