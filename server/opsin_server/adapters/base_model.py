"""What an adapter must fit: the served model's linears, projector and stored weights, without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from opsin_plugins.loading.linears import linears_of
from opsin_plugins.loading.lora_targets import LoraTarget, LoraTargets
from opsin_plugins.loading.open_model import OpenModel
from opsin_plugins.loading.weight_matching import Match, WeightMatcher
from opsin_plugins.spec import Linears, PublishedNames, SpecError
from opsin_server.adapters.module_names import published_names
from opsin_server.adapters.tensor_file import BitTensor, first_bytes, read_tensor
from opsin_server.served_name import model_name

PROJECTOR = "projector."
SAMPLED_BYTES = 64  # of a tensor
EMBEDDING, HEAD = "decoder.embedding.weight", "decoder.head.weight"


@dataclass(frozen=True)
class AdapterLimits:
    """rank: the largest that a slot takes. largest: the largest number of the engine's type (of bfloat16, whose range
    float32 has as well, unless it is said). projector: whether slots have room for a projector of an adapter's own."""

    rank: int
    largest: float = 3.38e38
    projector: bool = True


class BaseModel:
    def __init__(self, model: OpenModel, limits: AdapterLimits) -> None:
        self.limits, self._model = limits, model
        self.family, self.name = model.spec.family, model_name(model.files.directory)

    @cached_property
    def linears(self) -> Linears:
        return linears_of(self._model.spec, self._model.registry)

    @cached_property
    def _forms(self) -> list[PublishedNames]:
        """Every form in which this model is published; its own first."""
        architecture, spec = self._model.architecture, self._model.spec
        others = getattr(architecture, "other_names", None)
        own = PublishedNames(architecture.weights(spec), architecture.lora_groups(spec))
        return [own, *(others(spec) if others is not None else ())]

    @cached_property
    def _targets(self) -> list[LoraTargets]:
        return [LoraTargets(form.rules, self.linears, form.groups) for form in self._forms]

    @cached_property
    def _projector(self) -> tuple[dict[str, tuple[int, ...]], list[WeightMatcher]]:
        projector = self._model.spec.projector
        shapes = {} if projector is None else {PROJECTOR + k: shape for k, shape in projector.parameters().items()}
        return shapes, [WeightMatcher(form.rules, shapes) for form in self._forms]

    @cached_property
    def shape_digest(self) -> str:
        """Of the names and shapes of all that an adapter may change, and of some bytes of each tensor: what was checked
        against it fits, and was meant for this model and not another of its kind."""
        projector = self._projector[0]
        listed = sorted(f"{name} {shape.inputs} {shape.segments}" for name, shape in self.linears.items())
        listed += sorted(f"{name} {shape}" for name, shape in projector.items())
        hasher = hashlib.sha256("\n".join((self.family, *listed)).encode())
        tensors = self._model.files.stored_tensors
        for file in sorted({info.file for info in tensors.values()}):
            hasher.update(first_bytes(file, SAMPLED_BYTES))
        return hasher.hexdigest()

    def find(self, module: str) -> list[LoraTarget] | None:
        """Where the factors of a module go, by any name that it has had; None: to a layer that this model leaves out.
        Raises SpecError for what no adapter can change."""
        why = None
        for name in published_names(module):
            for targets in self._targets:
                try:
                    return targets.find(name)
                except SpecError as error:
                    if targets.is_unused(name):
                        return None
                    why = why or error
        assert why is not None
        raise why

    def group(self, module: str) -> str:
        """`part.component` of a module that `find` finds; its last name where it is of no group, as the head is."""
        found = (targets.group(name) for name in published_names(module) for targets in self._targets)
        return next((group for group in found if group is not None), module.rpartition(".")[2])

    def find_trained(self, name: str) -> list[Match]:
        """Where a tensor that was trained whole goes; nothing: it is none of the projector's."""
        _, matchers = self._projector
        for other in published_names(name):
            for matcher in matchers:
                if matches := matcher(other):
                    return matches
        return []

    def trained_shape(self, target: str) -> tuple[int, ...]:
        return self._projector[0][target]

    @cached_property
    def _stored(self) -> dict[str, str]:
        """The checkpoint's keys by the weight of the model that each fills alone."""
        matcher = self._names[0]
        filled: dict[str, list[str]] = {}
        for key in self._model.files.tensors:
            if (target := matcher.would_fill(key)) is not None:
                filled.setdefault(target, []).append(key)
        found = {target: keys[0] for target, keys in filled.items() if len(keys) == 1}
        if self._model.spec.decoder.tied and EMBEDDING in found:
            found[HEAD] = found[EMBEDDING]
        return found

    @cached_property
    def _names(self) -> list[WeightMatcher]:
        """Of all tensors, in each form."""
        return [WeightMatcher(form.rules, {}) for form in self._forms]

    def _stored_key(self, name: str) -> str | None:
        """The checkpoint's key of a tensor, by any name that it has had."""
        for other in published_names(name):
            for matcher in self._names:
                target = matcher.would_fill(other)
                if target in self._stored:
                    return self._stored[target]
        return None

    def equals_stored(self, name: str, tensor: BitTensor) -> bool | None:
        """Whether a copy of a tensor of the base holds its very numbers; None: there is none to compare with."""
        if (key := self._stored_key(name)) is None:
            return None
        info = self._model.files.tensors[key]
        if info.packing is not None:
            return None
        mine = read_tensor(info.file, key)
        return mine is not None and mine.equals(tensor)


def groups_of(base: BaseModel, modules: Sequence[str]) -> Mapping[str, int]:
    """How many modules of each group there are."""
    found: dict[str, int] = {}
    for module in modules:
        group = base.group(module)
        found[group] = found.get(group, 0) + 1
    return dict(sorted(found.items()))
