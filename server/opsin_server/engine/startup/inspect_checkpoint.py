"""A checkpoint directory examined before any weight is read: what it is, what it would take, and whether it fits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from opsin_plugins.blocks.checkpoint import targets
from opsin_plugins.blocks.model import build_model
from opsin_plugins.blocks.stored_bytes import stored_bytes
from opsin_plugins.blocks.weight_format import Dense
from opsin_plugins.blocks.weight_policy import Segments, WeightPolicy, declared_forms, published_halves
from opsin_plugins.loading.linears import linears_of
from opsin_plugins.loading.open_model import OpenModel
from opsin_plugins.loading.registry import Registry
from opsin_plugins.loading.weight_matching import assign
from opsin_plugins.spec import (
    Architecture,
    ImageBudget,
    ImageSpec,
    Linears,
    ModelFiles,
    ModelSpec,
    Rule,
    VisualItem,
)
from opsin_server.config import EngineConfig, image_limit
from opsin_server.engine.startup.activations import encode_bytes
from opsin_server.engine.startup.device import choose_dtype, multiplies_halves
from opsin_server.engine.startup.memory_plan import (
    ModelNeeds,
    ResolvedConfig,
    kv_bytes_per_token,
    resolve,
)
from opsin_server.engine.startup.quantized_activations import activation_policy
from opsin_server.errors import ConfigError
from opsin_server.ipc.memory_messages import Estimate

LEAST_IMAGE = 64  # visual tokens, below which no smaller picture is tried
LARGEST_SIDE = 4096  # pixels of the picture that is tried; no family makes more of a larger one than its limit


@dataclass(frozen=True)
class InspectedCheckpoint:
    """Every key has its place, and every byte is counted."""

    registry: Registry
    files: ModelFiles
    architecture: Architecture
    spec: ModelSpec
    rules: Sequence[Rule]
    dtype: torch.dtype
    policy: WeightPolicy
    parameters: int
    stored: Mapping[str, int]  # bytes by format

    @property
    def weight_bytes(self) -> int:
        return sum(self.stored.values())

    @property
    def linears(self) -> Linears:
        """All that adapters may change."""
        return linears_of(self.spec, self.registry)


def policy_of(
    config: EngineConfig,
    declared: Mapping[str, Segments],
    halves: Mapping[str, torch.dtype],
    device: torch.device,
) -> WeightPolicy:
    """Raises ConfigError for what is packed already, and for activations of 8 bits that no weight can meet."""
    if config.quantization == "none":
        if config.quantize_vision:
            raise ConfigError("--quantize-vision says what --quantization is for too, which is not given")
        forms = [form for segments in declared.values() for _, form in segments]
        activations = activation_policy(config, device, {form.codes for form in forms if form is not None})
        return WeightPolicy(declared=declared, halves=halves, activations=activations)
    if declared:
        raise ConfigError(f"--quantization {config.quantization}: the weights are quantized already; leave it out")
    activations = activation_policy(config, device, {config.quantization})
    return WeightPolicy(config.quantization, config.quantize_vision, halves=halves, activations=activations)


def examine(opened: OpenModel, config: EngineConfig, device: torch.device) -> InspectedCheckpoint:
    """Raises ConfigError or SpecError, with a sentence for the operator."""
    registry, files, architecture, spec = opened.registry, opened.files, opened.architecture, opened.spec
    dtype = choose_dtype(config.dtype, device, files)
    sketch = build_model(spec, registry, device="meta", dtype=dtype)
    places = {name: target.shape for name, target in targets(sketch).items()}
    parameters = sum(math.prod(shape) for shape in places.values())
    rules = architecture.weights(spec)
    plan = assign(files.tensors, rules, places)
    in_c = dtype == torch.float32 and multiplies_halves(device)
    halves = published_halves(plan, files.tensors) if in_c else {}
    policy = policy_of(config, declared_forms(plan, files.tensors), halves, device)
    sketch = build_model(spec, registry, device="meta", dtype=dtype, policy=policy)
    stored = stored_bytes(sketch)
    return InspectedCheckpoint(registry, files, architecture, spec, rules, dtype, policy, parameters, stored)


def estimate(
    inspected: InspectedCheckpoint, config: EngineConfig, device: torch.device, free: int
) -> tuple[Estimate, ResolvedConfig | None]:
    """What the model takes and whether it serves; None for the settings when it does not."""
    spec, item = inspected.spec, inspected.dtype.itemsize
    refusal, resolved, limit = "", None, image_limit(config.max_image_tokens, config.max_context or spec.max_positions)
    try:
        resolved = _settled(inspected, config, device, free)
        limit = resolved.max_image_tokens
    except ConfigError as error:
        refusal = str(error) + _remedy(inspected, config, device, free)
    needs = _needs(inspected, limit)
    largest = needs.largest
    kv = kv_bytes_per_token(spec.decoder, item, config.kv_dtype)
    tokens = 0 if largest is None else largest.tokens
    said = Estimate(
        family=spec.family,
        parameters=inspected.parameters,
        tensors=len(inspected.files.tensors),
        dtype=str(inspected.dtype).removeprefix("torch."),
        stored=tuple(inspected.stored.items()),
        weights=inspected.weight_bytes,
        kv_per_1000=1000 * kv,
        image_tokens=tokens,
        image_bytes=tokens * (kv if spec.cross is None else needs.visual_token_bytes),
        encoder_peak=0 if largest is None or spec.vision is None else encode_bytes(spec, largest, item),
        free=free,
        max_positions=spec.max_positions,
        context=0 if resolved is None else resolved.max_context,
        images=_images_that_fit(spec, resolved, largest),
        refusal=refusal,
        ledger=None if resolved is None else resolved.memory,
        video_tokens=0
        if resolved is None or spec.video is None
        else resolved.memory.room_for_video(resolved.max_context),
        no_video=spec.no_video,
    )
    return said, resolved


def _settled(inspected: InspectedCheckpoint, config: EngineConfig, device: torch.device, free: int) -> ResolvedConfig:
    """The largest image follows from the context, and the context from what the largest image leaves. So where pictures
    stand in the prompt, can be made smaller, and nobody has said how large they may be, the limit is halved until it is
    at most half of the context. Raises ConfigError, with the reason of the first try."""
    spec, refusal = inspected.spec, None
    limit = image_limit(config.max_image_tokens, config.max_context or spec.max_positions)
    in_prompt = spec.image is not None and spec.image.resizable and spec.cross is None
    free_to_choose = in_prompt and config.max_image_tokens is None
    while True:
        try:
            found = resolve(config, _needs(inspected, limit), device, free)
            if not free_to_choose or limit <= max(LEAST_IMAGE, found.max_context // 2):
                return found
        except ConfigError as error:
            refusal = refusal or error
            if not free_to_choose or limit <= LEAST_IMAGE:
                raise refusal from None
        limit = max(LEAST_IMAGE, limit // 2)


def _needs(inspected: InspectedCheckpoint, limit: int) -> ModelNeeds:
    largest = largest_image(inspected.architecture, inspected.spec, limit)
    return ModelNeeds(inspected.spec, inspected.linears, inspected.weight_bytes, inspected.dtype, limit, largest)


def largest_image(architecture: Architecture, spec: ModelSpec, limit: int) -> VisualItem | None:
    """A square picture as large as the family's rule reads, under the limit of visual tokens."""
    if spec.image is None:
        return None
    side = min(LARGEST_SIDE, _side(spec.image))
    budget = ImageBudget(max_tokens=limit)
    (item,) = architecture.preprocess([np.zeros((side, side, 3), np.uint8)], spec, budget)
    return item


def _side(image: ImageSpec) -> int:
    if image.pinpoints:
        return max(max(canvas) for canvas in image.pinpoints)
    return max(image.longest_edge, *image.size, int(image.max_pixels**0.5), image.patch * image.merge)


def _images_that_fit(spec: ModelSpec, resolved: ResolvedConfig | None, largest: VisualItem | None) -> int:
    """Of the largest, in one prompt."""
    if resolved is None or largest is None:
        return 0
    if spec.cross is not None:
        return resolved.memory.encoder_blocks // -(-largest.tokens // resolved.memory.block_size)
    return (resolved.max_context - 2) // largest.tokens


def _remedy(inspected: InspectedCheckpoint, config: EngineConfig, device: torch.device, free: int) -> str:
    """Whether --quantization would help weights that do not fit."""
    if inspected.weight_bytes <= free or inspected.policy.format != Dense.name or inspected.policy.declared:
        return ""
    policy = WeightPolicy("int8")
    sketch = build_model(inspected.spec, inspected.registry, device="meta", dtype=inspected.dtype, policy=policy)
    stored = stored_bytes(sketch)
    size = sum(stored.values())
    try:
        _settled(replace(inspected, stored=stored), config, device, free)
        verdict = "which fits"
    except ConfigError:
        verdict = f"still {size - free:,} too many" if size > free else "which leaves too little for the rest"
    return f". With --quantization int8 they need {size:,}: {verdict}"
