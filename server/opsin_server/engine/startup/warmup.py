"""Every kernel that serving launches is compiled before the first request is taken: one takes a second or more, for
which every client would wait. Compiled kernels stay on the disk (TRITON_CACHE_DIR), so that the next start is quick."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from msgspec import structs

from opsin_plugins.blocks.adapter_slots import AdapterSlots
from opsin_plugins.blocks.model import Model
from opsin_plugins.blocks.slot_lora import SlotLora
from opsin_plugins.spec import Architecture, ImageBudget, Linears, ModelSpec
from opsin_plugins.spec.visual_items import visible_images
from opsin_server.config import EngineConfig
from opsin_server.engine.startup.assemble import assemble
from opsin_server.engine.startup.memory_plan import ResolvedConfig
from opsin_server.ipc.memory_messages import AdapterRoom
from opsin_server.ipc.messages import Arrays, Sampling, Submit, arrays_of, describe

log = logging.getLogger("opsin.engine")
TEXT, COUNT, EDGE = 8, 2, 56
PENALIZED = Sampling(temperature=0.5, top_k=20, top_p=0.9, min_p=0.01, frequency_penalty=0.5, presence_penalty=0.5)


def warmup(
    model: Model, architecture: Architecture, linears: Linears, config: EngineConfig, resolved: ResolvedConfig
) -> None:
    """Answers made-up requests with an engine of its own, so that nothing of them is left in pools or counts."""
    from opsin_kernels.gpu.forms import compiling_every_form

    started, spec = time.monotonic(), model.spec
    requests = _requests(architecture, spec, resolved.max_context)
    block = resolved.memory.block_size
    blocks = sum(-(-(len(arrays.ids) + COUNT) // block) for _, arrays in requests) + len(requests)
    kept = sum(-(-item.tokens // block) for message, _ in requests for item in message.items)
    room = resolved.memory.adapters
    memory = structs.replace(resolved.memory, kv_blocks=blocks, encoder_blocks=kept, adapters=AdapterRoom())
    small, alone = replace(resolved, memory=memory), structs.replace(config, eager=True, prefix_cache=False)
    engine = assemble(model, linears, alone, small)
    with compiling_every_form():
        for message, arrays in requests:
            engine.submit(message, arrays)
            while engine.busy:
                failed = [o.error for o in engine.step() if o.error]
                if failed:
                    raise RuntimeError(f"a made-up request of {len(arrays.ids)} tokens failed: {failed[0]}")
        if room.slots:
            _add_nothing(linears, room.rank, resolved)
    log.info("kernels are compiled, %.1f s", time.monotonic() - started)


@torch.no_grad()
def _add_nothing(linears: Linears, rank: int, resolved: ResolvedConfig) -> None:
    """An empty adapter to one row of a linear of each shape: what adds adapters depends on nothing else."""
    for shape in set(linears.values()):
        slots = AdapterSlots({"": shape}, 1, rank, resolved.device, resolved.dtype)
        x, out = (
            torch.zeros(1, n, device=resolved.device, dtype=resolved.dtype) for n in (shape.inputs, shape.outputs)
        )
        SlotLora(slots, None, slots.numbers[:1]).add("", x, out)


def _requests(architecture: Architecture, spec: ModelSpec, context: int) -> list[tuple[Submit, Arrays]]:
    """Text alone; draws with penalties; pictures, if the model takes them. The first answers with one row a step."""
    text = min(TEXT, context - COUNT - 1)
    found = [
        made_up_request(architecture, spec, "text", text, (), COUNT),
        made_up_request(architecture, spec, "drawn", text, (), COUNT, PENALIZED),
    ]
    if spec.image_token is not None:
        found.append(made_up_request(architecture, spec, "picture", text, (EDGE,), COUNT))
    return [(message, arrays) for message, arrays in found if len(arrays.ids) + COUNT < context]


def made_up_request(
    architecture: Architecture,
    spec: ModelSpec,
    name: str,
    text: int,
    edges: Sequence[int],
    count: int,
    sampling: Sampling = Sampling(temperature=0.0),  # noqa: B008
) -> tuple[Submit, Arrays]:
    """Random tokens behind random pictures. text: tokens; edges: pixels of each square picture; count: tokens that are
    generated, whatever they are."""
    random = np.random.default_rng(int.from_bytes(name.encode()) % 2**32)
    drawn = random.integers(0, spec.decoder.vocab, 2 * text + 8)
    ids = drawn[drawn != spec.image_token][:text].tolist()
    if edges:
        assert spec.image_token is not None
        ids = [spec.image_token] * len(edges) + ids
    pictures = [random.integers(0, 255, (edge, edge, 3), np.uint8) for edge in edges]
    items = architecture.preprocess(pictures, spec, ImageBudget())
    items = [replace(item, digest=f"{name} {i}".encode()) for i, item in enumerate(items)]
    expanded = architecture.expand(ids, items, spec, lambda text: [0])
    positions, delta = architecture.positions(expanded, items, spec)
    message = Submit(
        name,
        sampling,
        count,
        (),
        delta,
        len(positions),
        expanded.spans,
        describe(items),
        visible_images(expanded.visible),
    )
    return message, arrays_of(expanded.ids, positions, items)
