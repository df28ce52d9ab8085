"""Every kernel that serving launches is compiled before the first request is taken: one takes a second or more, for
which every client would wait. Compiled kernels stay on the disk (TRITON_CACHE_DIR), so that the next start is quick."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from msgspec import structs

from opsin_plugins.blocks.model import Model
from opsin_plugins.spec import Architecture, ModelSpec
from opsin_server.config import EngineConfig
from opsin_server.engine.startup.assemble import assemble
from opsin_server.engine.startup.made_up_request import made_up_request
from opsin_server.engine.startup.memory_plan import ResolvedConfig
from opsin_server.ipc.messages import Arrays, Sampling, Submit

log = logging.getLogger("opsin.engine")
TEXT, COUNT, EDGE = 8, 2, 56
PENALIZED = Sampling(temperature=0.5, top_k=20, top_p=0.9, min_p=0.01, frequency_penalty=0.5, presence_penalty=0.5)


def warmup(
    model: Model, architecture: Architecture, spec: ModelSpec, config: EngineConfig, resolved: ResolvedConfig
) -> None:
    """Answers made-up requests with an engine of its own, so that nothing of them is left in pools or counts."""
    from opsin_kernels.gpu.attention import every_form

    started = time.monotonic()
    requests = _requests(architecture, spec, resolved.max_context)
    block = resolved.memory.block_size
    blocks = sum(-(-(len(arrays.ids) + COUNT) // block) for _, arrays in requests) + len(requests)
    cross_kv_blocks = sum(-(-item.rows // block) for message, _ in requests for item in message.items)
    use = structs.replace(resolved.memory, kv_blocks=blocks)
    small = replace(resolved, memory=use, cross_kv_blocks=cross_kv_blocks)
    engine = assemble(model, spec, structs.replace(config, eager=True, prefix_cache=False), small)
    with every_form():
        for message, arrays in requests:
            engine.submit(message, arrays)
            while engine.busy:
                failed = [o.error for o in engine.step() if o.error]
                if failed:
                    raise RuntimeError(f"a made-up request of {len(arrays.ids)} tokens failed: {failed[0]}")
    log.info("kernels are compiled, %.1f s", time.monotonic() - started)


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
