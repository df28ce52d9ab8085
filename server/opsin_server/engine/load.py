"""From a checkpoint directory to an engine that can step."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from opsin_kernels.dispatch import implementation
from opsin_plugins.blocks.decoder import KVPool
from opsin_plugins.blocks.model import Model, build_model
from opsin_plugins.checkpoint import load_weights
from opsin_plugins.spec import ModelSpec
from opsin_server.config import EngineConfig
from opsin_server.engine.block_manager import BlockManager
from opsin_server.engine.encoder_cache import EncoderCache, VisualStore
from opsin_server.engine.engine import Engine
from opsin_server.engine.examine import examine, outlook
from opsin_server.engine.graphs import DecodeGraphs, Recorder
from opsin_server.engine.memory import Resolved, choose_device, free_bytes
from opsin_server.engine.memory_blocks import MemoryBlocks
from opsin_server.engine.runner import Runner, make_pool
from opsin_server.engine.scheduler import Limits, Scheduler
from opsin_server.errors import ConfigError
from opsin_server.ipc.messages import Outlook, Ready

log = logging.getLogger("opsin.engine")


def load_engine(
    config: EngineConfig,
    progress: Callable[[int, int], None],
    tell: Callable[[Outlook], None] = lambda outlook: None,
) -> tuple[Engine, Ready]:
    """tell: hears what the model will take, before it takes it. Raises ConfigError or SpecError, with a sentence for
    the operator, before any weight is read."""
    device = choose_device(config.device)
    free = free_bytes(device)
    examined = examine(config, device, free)
    said, resolved = outlook(examined, config, device, free)
    if resolved is None:
        raise ConfigError(said.refusal)
    tell(said)
    spec, dtype = examined.spec, examined.dtype
    model = build_model(spec, examined.registry, device=device, dtype=dtype, quantize=config.quantize)
    load_weights(model, examined.rules, examined.files, progress)
    engine = assemble(model, spec, config, resolved)
    ready = Ready(
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} thread(s)",
        dtype=said.dtype,
        kernels=implementation(device.type),
        max_context=resolved.max_context,
        max_sequences=config.max_sequences,
        memory=resolved.memory,
    )
    return engine, ready


def assemble(model: Model, spec: ModelSpec, config: EngineConfig, resolved: Resolved) -> Engine:
    """An engine around a loaded model."""
    size = config.block_size
    blocks = BlockManager(resolved.memory.kv_blocks, size, config.prefix_cache)
    limits = Limits(config.max_sequences, resolved.max_batch_tokens, resolved.max_encode_patches)
    decoder, device, dtype = spec.decoder, resolved.device, resolved.dtype
    store: VisualStore[torch.Tensor]
    memory_pool: KVPool = ()
    if spec.memory is not None:
        store = MemoryBlocks(resolved.memory_blocks, size)
        memory_pool = make_pool(decoder, len(decoder.replaced), resolved.memory_blocks, size, device, dtype)
    else:
        store = EncoderCache(resolved.memory.encoder_bytes, resolved.bytes_per_visual_token)
    pool = make_pool(decoder, decoder.own_layers, blocks.total, size, device, dtype)
    graphs = None
    if config.graphs and device.type == "cuda" and implementation("cuda") == "triton":
        graphs = recorded(model, pool, memory_pool, config.max_sequences, resolved.max_context)
    runner = Runner(model, pool, store, device, memory_pool, graphs)
    return Engine(Scheduler(limits, blocks, store), runner, resolved.max_context)


@torch.no_grad()
def recorded(
    model: Model, pool: KVPool, memory_pool: KVPool, max_sequences: int, max_context: int
) -> DecodeGraphs | None:
    """Recorded decode steps; None, and said so, where the device cannot record them."""
    memory_rows = [layer.flatten(0, 1) for layer in memory_pool]
    graphs = DecodeGraphs(model, pool, max_sequences, max_context, Recorder(), memory_rows)
    try:
        graphs.prepare()
    except RuntimeError:
        log.exception("decode steps cannot be recorded as CUDA graphs; each is launched anew (as with --eager)")
        return None
    return graphs
