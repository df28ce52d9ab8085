"""Which format the weight of each linear takes. Modules declare linears; one policy chooses, after they are built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch

from opsin_plugins.blocks.activation_policy import ActivationPolicy
from opsin_plugins.blocks.segmented import Segmented
from opsin_plugins.blocks.weight_format import Dense, Form, Half
from opsin_plugins.blocks.weight_formats import FORMATS, form_of
from opsin_plugins.loading.weight_matching import Source
from opsin_plugins.spec import CodeForm, TensorInfo

# As they are, whatever the rest is, unless someone asks for it: tower and projector are few weights, run once a
# picture, and what they lose nothing behind them can mend.
VISION = ("vision.", "projector.")
PROJECTOR = "projector."  # in float32 in a model of float32: it may be trained whole
# The head's rounding falls on the logits themselves, so it is never stored in less than 8 bits; in 16 it would be read
# as slowly as all layers in 4. A tied head is the embedding.
HEAD, EMBEDDING = "decoder.head", "decoder.embedding"
HEAD_FORMATS = {"int4": "int8"}
EIGHT_BITS: Sequence[Literal["int8", "fp8"]] = ("int8", "fp8")
HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}  # as safetensors writes them

Segments = Sequence[tuple[int, CodeForm | None]]
"""Of a weight's rows, in order: how many, and as what a checkpoint has them (None: as floats)."""


@dataclass(frozen=True)
class WeightPolicy:
    """format: the name of what the decoder's linears are stored as (and those of cross-attention). vision: the tower's
    and the projector's too. declared: what a checkpoint has packed itself, by path: it is kept as it is. halves: the 16
    bits that it has other weights in, by path, where a model of float32 is to keep them. activations: which weights of
    8 bits meet activations of 8 bits; the head's never do."""

    format: str = Dense.name
    vision: bool = False
    declared: Mapping[str, Segments] = field(default_factory=dict)
    halves: Mapping[str, torch.dtype] = field(default_factory=dict)
    activations: ActivationPolicy = field(default_factory=ActivationPolicy)

    def choose(self, path: str, inputs: int, outputs: int, *, tied: bool = False) -> Form:
        """A weight that the format cannot hold stays as it is. tied: whether the head is the embedding."""
        if (segments := self.declared.get(path)) is not None:
            return _declared([(n, form and self._settled(path, form, inputs)) for n, form in segments])
        dense = self._dense(path, inputs, outputs)
        if (path == EMBEDDING and not tied) or (path.startswith(VISION) and not self.vision):
            return dense
        wanted = FORMATS[HEAD_FORMATS.get(self.format, self.format) if path in (HEAD, EMBEDDING) else self.format]
        if wanted is Dense or not wanted.holds(inputs, outputs):
            return dense
        kind = next((kind for kind in EIGHT_BITS if kind == wanted.name), None)
        return wanted if kind is None else form_of(self._settled(path, CodeForm(kind, inputs), inputs))

    def _settled(self, path: str, form: CodeForm, inputs: int) -> CodeForm:
        """With activations as the policy has them."""
        policy = ActivationPolicy() if path in (HEAD, EMBEDDING) else self.activations
        return policy.settled(form, inputs)

    def _dense(self, path: str, inputs: int, outputs: int) -> Form:
        dtype = None if path.startswith(PROJECTOR) else self.halves.get(path)
        return Dense if dtype is None or not Half.holds(inputs, outputs) else partial(Half, dtype=dtype)


def declared_forms(plan: Mapping[str, Sequence[Source]], tensors: Mapping[str, TensorInfo]) -> dict[str, Segments]:
    """What the checkpoint has packed, by the paths of linears; plan: which keys fill which weight."""
    found = {
        name.removesuffix(".weight"): [_segment(s, tensors[s.key]) for s in sources] for name, sources in plan.items()
    }
    return {path: segments for path, segments in found.items() if any(form is not None for _, form in segments)}


def published_halves(plan: Mapping[str, Sequence[Source]], tensors: Mapping[str, TensorInfo]) -> dict[str, torch.dtype]:
    """By the paths of linears and embeddings, those whose numbers all have the same 16 bits."""
    found = {}
    for name, sources in plan.items():
        stored = {tensors[source.key].dtype for source in sources}
        if len(stored) == 1 and (dtype := HALVES.get(stored.pop())) is not None:
            found[name.removesuffix(".weight")] = dtype
    return found


def _segment(source: Source, info: TensorInfo) -> tuple[int, CodeForm | None]:
    """Whose rows alone change places stays packed."""
    form = None if info.packing is None else info.packing.form
    keeps = source.reorder is None or source.reorder.axis == 0
    return source.shape(info.shape)[0], form if keeps else None


def _declared(segments: Segments) -> Form:
    (_, first), *others = segments
    alike = all(form == first for _, form in others)
    if alike and (first is None or not first.ordered or not others):
        return form_of(first)
    return partial(Segmented, segments=[(count, form_of(form)) for count, form in segments])
