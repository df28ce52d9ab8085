"""From a checkpoint directory to an engine that can step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from opsin_kernels.dispatch import implementation
from opsin_plugins.blocks.checkpoint import load_weights
from opsin_plugins.blocks.model import build_model
from opsin_plugins.loading.lora_targets import LoraTargets
from opsin_plugins.loading.open_served import OpenDualEncoder, open_served
from opsin_plugins.loading.published_projector import PublishedProjector, published_projector
from opsin_plugins.spec import SpecError
from opsin_server.config import EngineConfig
from opsin_server.engine.embedding_engine import EmbeddingEngine
from opsin_server.engine.engine import Engine
from opsin_server.engine.startup.assemble import assemble
from opsin_server.engine.startup.device import choose_device, free_bytes, kernels_on, warn_without_c
from opsin_server.engine.startup.inspect_checkpoint import InspectedCheckpoint, estimate, examine
from opsin_server.engine.startup.load_dual_encoder import load_dual_encoder, plan_dual_encoder
from opsin_server.engine.startup.memory_plan import ResolvedConfig
from opsin_server.engine.startup.training_warmup import warm_training
from opsin_server.engine.startup.warmup import warmup
from opsin_server.engine.training.trained_model import TrainedModel
from opsin_server.errors import ConfigError
from opsin_server.ipc.memory_messages import Estimate
from opsin_server.ipc.messages import Ready
from opsin_server.served_name import model_name


@dataclass(frozen=True)
class LoadedEngine:
    """ready: what the API process hears of it. base: the same model, to train over; None: it is not trained."""

    engine: Engine | EmbeddingEngine
    ready: Ready
    base: TrainedModel | None


def load_engine(
    config: EngineConfig,
    progress: Callable[[int, int], None],
    tell: Callable[[Estimate], None] = lambda estimate: None,
) -> LoadedEngine:
    """tell: hears what the model will take, before it takes it. Raises ConfigError or SpecError, with a sentence for
    the operator, before any weight is read. A CUDA device becomes the calling thread's current one, in which the engine
    is to be stepped: streams, events, graphs and kernels are made and launched there."""
    device = choose_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    warn_without_c(device)
    free = free_bytes(device)
    said, load = _planned(config, device, free, progress)
    tell(said)
    try:
        return load()
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        counted = 0 if said.ledger is None else said.ledger.reserved
        raise ConfigError(
            f"{counted:,} bytes were counted and {free:,} were free on {device.type}, but no more could be allocated: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _planned(
    config: EngineConfig, device: torch.device, free: int, progress: Callable[[int, int], None]
) -> tuple[Estimate, Callable[[], LoadedEngine]]:
    """What the model takes, and what loads it. Raises ConfigError where it does not fit."""
    opened = open_served(Path(config.model), config.plugins, config.family_options(), config.tower_file())
    if isinstance(opened, OpenDualEncoder):
        planned = plan_dual_encoder(opened, config, device, free)
        if planned.said.ledger is None:
            raise ConfigError(planned.said.refusal)
        return planned.said, lambda: LoadedEngine(*load_dual_encoder(planned, config, device, progress), None)
    inspected = examine(opened, config, device)
    said, resolved = estimate(inspected, config, device, free)
    if resolved is None:
        raise ConfigError(said.refusal)
    return said, lambda: _allocated(config, inspected, resolved, said, progress)


def _lacks_memory(error: Exception) -> bool:
    """torch says so on a CPU by a RuntimeError of many kinds."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _allocated(
    config: EngineConfig,
    inspected: InspectedCheckpoint,
    resolved: ResolvedConfig,
    said: Estimate,
    progress: Callable[[int, int], None],
) -> LoadedEngine:
    device = resolved.device
    model = build_model(
        inspected.spec, inspected.registry, device=device, dtype=inspected.dtype, policy=inspected.policy
    )
    load_weights(model, inspected.rules, inspected.files, progress)
    if implementation(device.type) == "triton":
        warmup(model, inspected.architecture, inspected.linears, config, resolved)
    engine = assemble(model, inspected.linears, config, resolved)
    ready = Ready(
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} thread(s)",
        dtype=said.dtype,
        kernels=kernels_on(device),
        max_context=resolved.max_context,
        max_image_tokens=resolved.max_image_tokens,
        max_sequences=config.max_sequences,
        memory=resolved.memory,
        stored=said.stored,
    )
    targets = LoraTargets(inspected.rules, inspected.linears, inspected.architecture.lora_groups(inspected.spec))
    name = model_name(inspected.files.directory)
    base = TrainedModel(model, targets, inspected.linears, device, name, _projector(inspected))
    if ready.kernels == "triton" and resolved.memory["training"]:
        warm_training(base, inspected)
    return LoadedEngine(engine, ready, base)


def _projector(inspected: InspectedCheckpoint) -> PublishedProjector | str | None:
    """As `TrainedModel` has it."""
    if (spec := inspected.spec.projector) is None:
        return None
    try:
        return published_projector(inspected.rules, inspected.files.tensors, spec)
    except SpecError as error:
        return str(error)
