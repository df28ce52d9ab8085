"""From a dual encoder's directory to an engine that can step: examined, planned and filled as any model is."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec.structs
import numpy as np
import torch
from torch import nn

from opsin_kernels.dispatch import implementation
from opsin_plugins.blocks.checkpoint import load_weights, targets
from opsin_plugins.blocks.dual_encoder import build_dual_encoder
from opsin_plugins.blocks.stored_bytes import stored_bytes
from opsin_plugins.blocks.weight_policy import WeightPolicy, declared_forms, published_halves
from opsin_plugins.loading.open_served import OpenDualEncoder
from opsin_plugins.loading.weight_matching import assign
from opsin_plugins.spec import SpecError, VisualItem
from opsin_server.config import EngineConfig
from opsin_server.engine.embedding_engine import EmbeddingEngine, StepLimits
from opsin_server.engine.startup.activations import pixel_bytes, tower_values
from opsin_server.engine.startup.device import choose_dtype, kernels_on, multiplies_halves
from opsin_server.engine.startup.memory_plan import BATCH_TOKENS, ENCODE_PATCHES, ENCODE_SHARE, LIBRARY_BYTES
from opsin_server.errors import ConfigError
from opsin_server.ipc.memory_messages import Estimate, MemoryLedger, Reserve
from opsin_server.ipc.messages import Ready

log = logging.getLogger("opsin.engine")

# Options that say something of answers, of adapters or of training, none of which there are here; 0 is what happens.
NOT_HERE = (
    "quantization", "quantize_activations", "quantize_vision", "kv_dtype", "kv_memory", "encoder_memory",
    "max_context", "max_image_tokens", "max_loras", "max_lora_rank", "max_cpu_loras", "train_memory",
)  # fmt: skip


@dataclass(frozen=True)
class PlannedDualEncoder:
    """opened: what it is. said: what it takes, and whether that is there. picture: one that is prepared, as all are."""

    opened: OpenDualEncoder
    said: Estimate
    dtype: torch.dtype
    policy: WeightPolicy
    limits: StepLimits
    picture: VisualItem


def plan_dual_encoder(
    opened: OpenDualEncoder, config: EngineConfig, device: torch.device, free: int
) -> PlannedDualEncoder:
    """Every key has its place, and every byte is counted; nothing is read. Raises ConfigError or SpecError."""
    _check_options(config)
    spec, files = opened.spec, opened.files
    dtype = choose_dtype(config.dtype, device, files)
    sketch = _built(opened, "meta", dtype, WeightPolicy())
    places = {name: target.shape for name, target in targets(sketch).items()}
    assigned = assign(files.tensors, opened.family.weights(spec), places)
    if declared_forms(assigned, files.tensors):
        raise SpecError(
            "a dual encoder with quantized weights is not supported: give the checkpoint that was quantized"
        )
    in_c = dtype == torch.float32 and multiplies_halves(device)
    policy = WeightPolicy(halves=published_halves(assigned, files.tensors) if in_c else {})
    stored = stored_bytes(_built(opened, "meta", dtype, policy))
    picture = opened.family.preprocess(np.zeros((8, 8, 3), np.uint8), spec)
    encode = pixel_bytes(spec.vision, picture, dtype.itemsize) + dtype.itemsize * tower_values(spec.vision, picture)
    weights = sum(stored.values())
    limits = _limits(config, opened, device, max(0, free - weights), picture, encode)
    reserves = {
        "weights": weights,
        "largest step": limits.tokens * dtype.itemsize * (8 * spec.text.width + 2 * spec.text.mlp),
        "largest encode": encode * max(1, limits.patches // math.prod(picture.grid)),
        "libraries": LIBRARY_BYTES[device.type],
    }
    named = tuple(Reserve(name, count) for name, count in reserves.items() if count)
    ledger = MemoryLedger(free, named, 0, 0, config.block_size)
    parts = ", ".join(f"{reserve.name} {reserve.bytes:,}" for reserve in named)
    refusal = f"{parts} are {ledger.reserved:,} bytes; {free:,} are free on {device.type}: {-ledger.slack:,} too few"
    said = Estimate(
        family=spec.family,
        parameters=sum(math.prod(shape) for shape in places.values()),
        tensors=len(files.tensors),
        dtype=str(dtype).removeprefix("torch."),
        stored=tuple(stored.items()),
        weights=weights,
        kv_per_1000=0,
        image_tokens=picture.tokens,
        image_bytes=0,
        encoder_peak=encode,
        free=free,
        max_positions=spec.text.context,
        context=spec.text.context,
        images=limits.patches // math.prod(picture.grid),
        refusal=refusal if ledger.slack < 0 else "",
        ledger=ledger if ledger.slack >= 0 else None,
        dimensions=spec.dimensions,
    )
    return PlannedDualEncoder(opened, said, dtype, policy, limits, picture)


def _check_options(config: EngineConfig) -> None:
    """Raises ConfigError for an option that has nothing to act on."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(EngineConfig)}
    for name in NOT_HERE:
        value = getattr(config, name)
        if value != defaults[name] and value != 0:
            raise ConfigError(
                f"--{name.replace('_', '-')} {value}: this model makes embeddings of texts and pictures; there is "
                "nothing in it for this option"
            )


def _limits(
    config: EngineConfig, opened: OpenDualEncoder, device: torch.device, left: int, picture: VisualItem, encode: int
) -> StepLimits:
    """left: bytes that the weights leave. encode: what a picture takes while it is embedded."""
    tokens = config.max_batch_tokens or max(BATCH_TOKENS[device.type], opened.spec.text.context)
    patches = math.prod(picture.grid)
    pictures = max(1, min(ENCODE_PATCHES[device.type] // patches, int(left * ENCODE_SHARE) // encode))
    return StepLimits(tokens, pictures * patches, config.max_sequences)


def load_dual_encoder(
    planned: PlannedDualEncoder,
    config: EngineConfig,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> tuple[EmbeddingEngine, Ready]:
    """The engine, and what the API process hears of it."""
    opened, said = planned.opened, planned.said
    assert said.ledger is not None
    model = _built(opened, device, planned.dtype, planned.policy)
    load_weights(model, opened.family.weights(opened.spec), opened.files, progress)
    engine = EmbeddingEngine(model, opened.spec, planned.limits, device)  # type: ignore[arg-type]  # (a builder's module)
    if implementation(device.type) == "triton":
        _warm(engine, planned.picture)
    ready = Ready(
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} thread(s)",
        dtype=said.dtype,
        kernels=kernels_on(device),
        max_context=said.context,
        max_image_tokens=said.image_tokens,
        max_sequences=config.max_sequences,
        memory=said.ledger,
        stored=said.stored,
    )
    return engine, ready


@torch.no_grad()
def _warm(engine: EmbeddingEngine, picture: VisualItem) -> None:
    """Every kernel that is launched is compiled before the first request is taken."""
    from opsin_kernels.gpu.forms import compiling_every_form

    started, context = time.monotonic(), engine.spec.text.context
    with compiling_every_form():
        engine.model.embed_texts(torch.zeros(context, dtype=torch.int64, device=engine.device), [context])
        engine.model.embed_pictures(torch.from_numpy(picture.pixels).to(engine.device), [picture])
    log.info("kernels are compiled, %.1f s", time.monotonic() - started)


def _built(opened: OpenDualEncoder, device: torch.device | str, dtype: torch.dtype, policy: WeightPolicy) -> nn.Module:
    return build_dual_encoder(
        opened.spec, opened.family.builder, opened.registry, device=device, dtype=dtype, policy=policy
    )
