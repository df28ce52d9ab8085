"""From a checkpoint directory to an engine that can step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from opsin_kernels.dispatch import implementation
from opsin_plugins.blocks.decoder import KVPool
from opsin_plugins.blocks.linear import Quantize
from opsin_plugins.blocks.model import Model, build_model
from opsin_plugins.checkpoint import assign, load_weights, targets
from opsin_plugins.files import read_model_files
from opsin_plugins.registry import Registry
from opsin_plugins.spec import ModelSpec
from opsin_server.config import EngineConfig
from opsin_server.engine.block_manager import BlockManager
from opsin_server.engine.encoder_cache import EncoderCache, VisualStore
from opsin_server.engine.engine import Engine
from opsin_server.engine.memory import Resolved, choose_device, choose_dtype, refuse_quantized, resolve
from opsin_server.engine.memory_blocks import MemoryBlocks
from opsin_server.engine.runner import Runner, make_pool
from opsin_server.engine.scheduler import Limits, Scheduler
from opsin_server.ipc.messages import Ready


def load_engine(config: EngineConfig, progress: Callable[[int, int], None]) -> tuple[Engine, Ready]:
    """Raises ConfigError or SpecError, with a sentence for the operator, before any weight is read."""
    registry = Registry(config.plugins)
    files = read_model_files(Path(config.model), dict(config.model_options))
    architecture = registry.architecture(files)
    spec = architecture.spec(files)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device, files)
    # On the meta device first: every key is checked and every byte counted before anything is allocated.
    sketch = build_model(spec, registry, device="meta", dtype=dtype, quantize=config.quantize)
    refuse_quantized(files, sum(p.numel() for p in sketch.parameters()), device)
    rules = architecture.weights(spec)
    assign(files.tensors, rules, {name: target.shape for name, target in targets(sketch).items()})
    resolved = resolve(config, files, spec, device, dtype, tensor_bytes(sketch))
    model = build_model(spec, registry, device=device, dtype=dtype, quantize=config.quantize)
    load_weights(model, rules, files, progress)
    engine = assemble(model, spec, config, resolved)
    ready = Ready(
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} thread(s)",
        dtype=stored_types(dtype, config.quantize),
        kernels=implementation(),
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
    runner = Runner(model, pool, store, device, memory_pool)
    return Engine(Scheduler(limits, blocks, store), runner, resolved.max_context)


def tensor_bytes(model: Model) -> int:
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


def stored_types(dtype: torch.dtype, quantize: Quantize) -> str:
    name = str(dtype).removeprefix("torch.")
    return name if quantize == "none" else f"linears {quantize}, the rest {name}"
