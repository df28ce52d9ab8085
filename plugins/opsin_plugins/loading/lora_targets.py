"""What an adapter may change: from a published linear's name to the model's linear. Torch-free, and without a built
model, so that the API process can check an adapter before the engine hears of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from opsin_plugins.loading.weight_matching import Match, WeightMatcher
from opsin_plugins.spec import Linears, Pattern, Reorder, Rule, SpecError


@dataclass(frozen=True)
class LoraTarget:
    """Where the factors of a published linear go: segment `segment` of the model's linear, whose outputs are `rows`
    (first, last + 1) of the published ones once these are reordered.

    reorder: of the published weight; of its rows it is one of `b`, of its columns one of `a`.
    """

    linear: str
    segment: int
    inputs: int
    rows: tuple[int, int]
    reorder: Reorder | None


class LoraTargets:
    """rules: Architecture.weights; linears: `linears.linears_of`; groups: Architecture.lora_groups."""

    def __init__(self, rules: Sequence[Rule], linears: Linears, groups: Mapping[str, Pattern]) -> None:
        self._linears, self._groups = linears, groups
        shapes = {f"{name}.weight": (shape.outputs, shape.inputs) for name, shape in linears.items()}
        self._matcher = WeightMatcher(rules, shapes)

    def group(self, name: str) -> str | None:
        """`part.component` of a published linear (see Architecture.lora_groups); None: of none, such as the head."""
        canonical = self._matcher.canonical(f"{name}.weight").removesuffix(".weight")
        return next((group for group, pattern in self._groups.items() if pattern.fullmatch(canonical)), None)

    def modules(self, keys: Iterable[str]) -> dict[str, str]:
        """The published linears that belong to a group, and which, of a checkpoint's keys: in the dialect of the rules,
        which are the names of the modules that transformers and PEFT know."""
        found = {}
        for key in keys:
            published = key.removesuffix(".weight")
            group = self.group(published)
            if published != key and group is not None and self._matcher(key):
                found[self._matcher.canonical(key).removesuffix(".weight")] = group
        return found

    def find(self, name: str) -> list[LoraTarget]:
        """Of a published linear's name, in any dialect that the family's rules know. A linear that is published fused
        gives several. Raises SpecError for what no adapter can change."""
        for key in (f"{name}.weight", name):
            if matches := self._matcher(key):
                return [target for match in matches for target in self._targets(match)]
        raise SpecError(f"{name}: {self._why_not(name)}")

    def is_unused(self, name: str) -> bool:
        """Whether a published linear is of a layer that this model leaves out, so that no adapter of it acts."""
        return any(self._matcher(key) == [] for key in (f"{name}.weight", name))

    def _targets(self, match: Match) -> list[LoraTarget]:
        path = match.target.removesuffix(".weight")
        shape = self._linears[path]
        if match.parts > 1:
            assert match.parts == len(shape.segments), (
                f"{path}: {match.parts} sources of {len(shape.segments)} segments"
            )
            sizes, first = shape.segments[match.part : match.part + 1], match.part
        else:
            sizes, first = shape.segments, 0
        offset = 0 if match.rows is None else match.rows[0]
        ends = list(accumulate(sizes))
        return [
            LoraTarget(path, first + i, shape.inputs, (offset + end - size, offset + end), match.reorder)
            for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
        ]

    def _why_not(self, name: str) -> str:
        known = self._matcher.would_fill(f"{name}.weight") or self._matcher.would_fill(name)
        if known is None:
            return "this model has no such weight"
        if known == "decoder.embedding.weight":
            return "the token embedding, which an adapter cannot change"
        if known.startswith("vision.patch"):
            return "the patch embedding, a convolution, which an adapter cannot change"
        return f"no linear ({known} here), so that an adapter cannot change it"
