"""An engine around a loaded model: pools, block managers, scheduler, runner, recorded steps."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from opsin_kernels.dispatch import implementation
from opsin_kernels.kv_rows import KINDS
from opsin_plugins.blocks.adapter_slots import AdapterSlots
from opsin_plugins.blocks.decoder import KVPool
from opsin_plugins.blocks.model import Model
from opsin_plugins.blocks.trained_projectors import PREFIX, TrainedProjectors
from opsin_plugins.spec import Linears
from opsin_server.config import EngineConfig
from opsin_server.engine.engine import Engine
from opsin_server.engine.running.adapter_loader import AdapterLoader, SlotShape
from opsin_server.engine.running.cuda_graphs import DecodeGraphs, GraphCapture
from opsin_server.engine.running.runner import Runner, make_pool, make_visual_pool
from opsin_server.engine.scheduling.encoder_cache import EncoderCache
from opsin_server.engine.scheduling.kv_blocks import BlockManager
from opsin_server.engine.scheduling.plan import Limits
from opsin_server.engine.scheduling.resident_adapters import ResidentAdapters
from opsin_server.engine.scheduling.scheduler import Scheduler
from opsin_server.engine.startup.memory_plan import ResolvedConfig

log = logging.getLogger("opsin.engine")


def assemble(model: Model, linears: Linears, config: EngineConfig, resolved: ResolvedConfig) -> Engine:
    """linears: all that adapters may change (`loading.linears.linears_of`)."""
    spec, size = model.spec, config.block_size
    blocks = BlockManager(resolved.memory.kv_blocks, size, config.prefix_cache)
    limits = Limits(config.max_sequences, resolved.max_context, resolved.max_batch_tokens, resolved.max_encode_patches)
    decoder, device, dtype = spec.decoder, resolved.device, resolved.dtype
    kept = resolved.memory.encoder_blocks
    cache: EncoderCache[torch.Tensor] = EncoderCache(kept, size, pinned_during_decode=spec.cross is not None)
    visual_pool = make_visual_pool(spec, kept, size, device, dtype)
    kept_as = KINDS.get(config.kv_dtype, dtype)
    pool = make_pool(decoder, decoder.own_layers, blocks.total, size, device, kept_as)
    adapters, loader = None, None
    room = resolved.memory.adapters
    if room.slots:
        trained, shapes = None, {}
        if room.projectors and spec.projector is not None:
            trained = TrainedProjectors(model, room.slots, device, dtype)
            shapes = {f"{PREFIX}{name}": shape for name, shape in spec.projector.parameters().items()}
        adapters = AdapterSlots(linears, room.slots, room.rank, device, dtype, trained)
        loader = AdapterLoader(SlotShape(linears, room.rank, dtype, shapes))
    graphs = None
    if not config.eager and device.type == "cuda" and implementation("cuda") == "triton":
        graphs = captured(model, pool, visual_pool, config.max_sequences, resolved.max_context, adapters)
    runner = Runner(model, pool, cache, device, visual_pool, graphs, adapters)
    scheduler = Scheduler(limits, blocks, cache, ResidentAdapters(room.slots, room.host_copies))
    return Engine(scheduler, runner, run_ahead=device.type == "cuda", loader=loader)


@torch.no_grad()
def captured(
    model: Model,
    pool: KVPool,
    visual_pool: Sequence[torch.Tensor],
    max_sequences: int,
    max_context: int,
    adapters: AdapterSlots | None = None,
) -> DecodeGraphs | None:
    """Recorded decode steps; None, and said so, where the device cannot record them."""
    cross_kv = visual_pool if model.spec.cross is not None else ()
    graphs = DecodeGraphs(model, pool, max_sequences, max_context, GraphCapture(), cross_kv, adapters)
    before = torch.cuda.mem_get_info()[0]
    try:
        graphs.prepare()
    except RuntimeError:
        log.exception("decode steps cannot be recorded as CUDA graphs; each is launched anew (as with --eager)")
        return None
    log.info("%d decode steps are captured, in %d bytes", graphs.count, before - torch.cuda.mem_get_info()[0])
    return graphs
