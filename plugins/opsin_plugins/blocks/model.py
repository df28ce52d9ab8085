"""Builds one model from a spec: tower, projector, fusion, decoder. The same modules serve and train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from opsin_plugins.blocks.decoder import Decoder, Embedding, KVPool, ModelInputs
from opsin_plugins.blocks.fusion import Fusion, Visual
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.lora import Lora
from opsin_plugins.blocks.projector_groups import by_projector
from opsin_plugins.blocks.stages import Stage
from opsin_plugins.blocks.tower import Picture
from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import ModelSpec, ProjectorSpec


class TowerModule(Protocol):
    """What an encoder's builder makes: an nn.Module with these. It may have `stages(pictures, lora)` as `Tower` has it;
    one without is a single piece."""

    def lengths(self, pictures: Sequence[Picture]) -> list[int]:
        """Features of each picture."""

    def __call__(self, pixels: Tensor, pictures: Sequence[Picture], lora: Lora | None = None) -> Tensor:
        """pixels U8 [N, C·p·p] -> features [N', width]. lora: of all patches, a run each picture; every `Linear` gets
        it, with as many rows in each run as there are rows."""


class ProjectorModule(Protocol):
    """What a projector's builder makes: an nn.Module with these."""

    def counts(self, lengths: Sequence[int]) -> list[int]:
        """Visual tokens of pictures with so many features."""

    def __call__(self, x: Tensor, lengths: Sequence[int], lora: Lora | None = None) -> Tensor:
        """Features [N', width] -> visual tokens [M, H]. lora: of all features, a run each picture."""

    def arrange(self, tokens: Tensor, order: Tensor) -> Tensor:
        """Visual tokens of one picture in the order of VisualItem.arrange."""


class Model(nn.Module):
    vision: TowerModule | None
    projector: ProjectorModule | None
    fusion: Fusion | None

    def __init__(
        self,
        spec: ModelSpec,
        tower: TowerModule | None,
        projector: ProjectorModule | None,
        fusion: Fusion | None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.vision, self.projector, self.fusion = tower, projector, fusion
        self.decoder = Decoder(spec.decoder)

    def encode(
        self,
        pixels: Tensor,
        pictures: Sequence[Picture],
        arrange: Sequence[Tensor | None] | None = None,
        lora: Lora | None = None,
    ) -> list[Tensor]:
        """Pixels U8 [N, C·p·p] of all pictures -> the visual tokens of each [M, H · (1 + levels)].

        arrange: I64 [M] a picture, as of VisualItem. lora: a run each picture, of any number of rows.
        """
        assert self.vision is not None
        if lora is not None:
            lora = lora.resized([_patches(picture) for picture in pictures])
        return self._projected(self.vision(pixels, pictures, lora), pictures, arrange, lora)

    def encode_stages(
        self,
        pictures: Sequence[Picture],
        arrange: Sequence[Tensor | None] | None = None,
        lora: Lora | None = None,
    ) -> list[Stage]:
        """From "pixels" to "tokens", the visual tokens of all pictures behind each other."""
        assert self.vision is not None
        if lora is not None:
            lora = lora.resized([_patches(picture) for picture in pictures])

        def project(features: Tensor) -> tuple[Tensor]:
            return (torch.cat(self._projected(features, pictures, arrange, lora)),)

        return [*self._tower_stages(pictures, lora), Stage("projector", ("features",), ("tokens",), project)]

    def _tower_stages(self, pictures: Sequence[Picture], lora: Lora | None) -> list[Stage]:
        tower = self.vision
        assert tower is not None
        if (stages := getattr(tower, "stages", None)) is not None:
            found: list[Stage] = stages(pictures, lora)
            return found
        return [Stage("tower", ("pixels",), ("features",), lambda pixels: (tower(pixels, pictures, lora),))]

    def _projected(
        self,
        features: Tensor,
        pictures: Sequence[Picture],
        arrange: Sequence[Tensor | None] | None,
        lora: Lora | None,
    ) -> list[Tensor]:
        assert self.vision is not None
        assert self.projector is not None
        orders = [None] * len(pictures) if arrange is None else arrange
        lengths = self.vision.lengths(pictures)
        if lora is None:
            return _arranged(self.projector, features, lengths, orders, None)
        groups = by_projector(lora, len(pictures), self.projector)
        if len(groups) == 1:
            return _arranged(groups[0].projector, features, lengths, orders, lora.resized(lengths))
        found: dict[int, Tensor] = {}
        parts = features.split(lengths)
        for projector, members in groups:
            mine = [lengths[i] for i in members]
            only = lora.of_runs(members).resized(mine)
            rows = torch.cat([parts[i] for i in members])
            found |= zip(members, _arranged(projector, rows, mine, [orders[i] for i in members], only), strict=True)
        return [found[i] for i in range(len(pictures))]

    def tokens_of(self, picture: Picture) -> int:
        """How many tokens the projector makes of a picture, before they are arranged."""
        assert self.vision is not None
        assert self.projector is not None
        (count,) = self.projector.counts(self.vision.lengths([picture]))
        return int(count)

    def forward(
        self, ids: Tensor, inputs: ModelInputs, pool: KVPool | None = None, visual: Visual | None = None
    ) -> Tensor:
        """ids I64 [T] -> the last layer's states [T, H], or [M, H] of the wanted rows, which `logits` takes."""
        return self.decoder(self._embedded(ids, visual), inputs, pool, self.fusion, visual)

    def stages(self, ids: Tensor, inputs: ModelInputs, visual: Visual | None = None) -> list[Stage]:
        """As `forward` without a pool, from the visual "tokens" (if there are any; or "states" of the cross inputs) to
        the states "x"."""

        def embed(tokens: Tensor | None = None) -> tuple[Tensor]:
            return (self._embedded(ids, None if tokens is None or visual is None else Visual(tokens, visual.rows)),)

        takes = () if visual is None else ("tokens",)
        return [Stage("embed", takes, ("x",), embed), *self.decoder.stages(inputs, self.fusion, visual)]

    def _embedded(self, ids: Tensor, visual: Visual | None) -> Tensor:
        x = self.decoder.embedding(ids)
        if visual is None:
            return x
        assert self.fusion is not None
        return self.fusion.on_embeddings(x, visual)

    def logits(self, states: Tensor, lora: Lora | None = None) -> Tensor:
        """[M, vocab]. lora: of the rows of the states (`ModelInputs.output_lora`)."""
        return self.decoder.logits(states, lora)


def build_model(
    spec: ModelSpec,
    registry: Registry,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    policy: WeightPolicy = WeightPolicy(),  # noqa: B008
) -> Model:
    """Unfilled weights on the device; `checkpoint.load_weights` fills them. policy: how weights of linears are
    stored."""
    return allocated(lambda: _declared(spec, registry), device, dtype, policy, tied=spec.decoder.tied)


Declared = TypeVar("Declared", bound=nn.Module)


def allocated(
    declare: Callable[[], Declared],
    device: torch.device | str,
    dtype: torch.dtype,
    policy: WeightPolicy,
    *,
    tied: bool = False,
) -> Declared:
    """What `declare` makes, each of its linears with room for a weight in the format that the policy gives it. tied:
    whether the head is the embedding."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = declare()
            for path, module in model.named_modules():
                if isinstance(module, Linear):
                    module.allocate(path, policy.choose(path, module.inputs, module.outputs))
                elif isinstance(module, Embedding):
                    module.allocate(policy.choose(path, module.width, module.vocab, tied=tied))
    finally:
        torch.set_default_dtype(previous)
    return model.eval()


def _declared(spec: ModelSpec, registry: Registry) -> Model:
    """All modules, with linears that have no weight yet."""
    if spec.vision is None:
        return Model(spec, None, None, None)
    assert spec.encoder is not None
    assert spec.projector is not None
    assert spec.fusion is not None
    assert spec.image is not None
    tower = builder_of(registry.encoder(spec.encoder).builder)(spec.vision, spec.image.merge)
    projector = declared_projector(spec.projector)
    return Model(spec, tower, projector, builder_of(registry.fusion(spec.fusion).builder)(spec))


def declared_projector(spec: ProjectorSpec) -> Any:
    """With linears that have no weight yet."""
    return builder_of(spec.builder)(spec)


def builder_of(name: str) -> Any:
    """What "package.module:function" names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def _arranged(
    projector: ProjectorModule,
    features: Tensor,
    lengths: Sequence[int],
    orders: Sequence[Tensor | None],
    lora: Lora | None,
) -> list[Tensor]:
    """Visual tokens of each picture, which has so many of the features."""
    tokens = projector(features, lengths, lora).split(projector.counts(lengths))
    return [x if order is None else projector.arrange(x, order) for x, order in zip(tokens, orders, strict=True)]


def _patches(picture: Picture) -> int:
    frames, rows, columns = picture.grid
    return frames * rows * columns
