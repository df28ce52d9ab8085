"""An engine in this process, and requests to it without text."""

from __future__ import annotations

import select
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from opsin_plugins.loading.linears import linears_of
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import U8, ImageBudget, VisualItem
from opsin_plugins.spec.visual_items import visible_images
from opsin_server.config import EngineConfig, KvDType
from opsin_server.engine.engine import Engine
from opsin_server.engine.startup.assemble import assemble
from opsin_server.engine.startup.memory_plan import ResolvedConfig
from opsin_server.ipc.memory_messages import AdapterRoom, MemoryLedger
from opsin_server.ipc.messages import (
    AdapterRef,
    Logprobs,
    Output,
    Pooling,
    PromptLogprobs,
    Sampling,
    Submit,
    arrays_of,
    describe,
)
from opsin_server.text.image_digest import image_digest
from support.oracle import Ours, Prompt, prompt

GREEDY = Sampling(temperature=0.0)
RUN_AHEAD = False  # whether engines launch a step before they look at the results of the last, as on a GPU


def make_engine(
    ours: Ours,
    *,
    blocks: int = 256,
    block_size: int = 4,
    max_context: int = 400,
    max_batch_tokens: int = 64,
    max_sequences: int = 16,
    prefix_cache: bool = True,
    encoder_blocks: int = 256,
    dtype: torch.dtype = torch.float32,
    max_encode_patches: int = 4096,
    adapter_slots: int = 0,
    adapter_rank: int = 16,
    host_copies: int | None = None,
    kv_dtype: KvDType = "auto",
) -> Engine:
    config = EngineConfig(
        model="",
        kv_dtype=kv_dtype,
        max_sequences=max_sequences,
        block_size=block_size,
        prefix_cache=prefix_cache,
    )
    room = AdapterRoom(adapter_slots, adapter_rank, host_copies or adapter_slots, projectors=True)
    memory = MemoryLedger(0, (), blocks, encoder_blocks, block_size, room)
    cpu = torch.device("cpu")
    context = min(max_context, blocks * block_size)
    resolved = ResolvedConfig(cpu, dtype, context, max_batch_tokens, max_encode_patches, 64, memory)
    engine = assemble(ours.model, linears_of(ours.spec, Registry()), config, resolved)
    engine.run_ahead = RUN_AHEAD
    return engine


@dataclass
class Asked:
    ids: Sequence[int]
    images: Sequence[U8 | VisualItem] = ()  # the second of a video that is prepared
    count: int = 16
    sampling: Sampling = GREEDY
    guided: str | None = None
    min_tokens: int = 0
    priority: int = 0
    prompt_logprobs: int = -1


@dataclass
class Answer:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    finish: str | None = None
    cached: int = 0
    error: str | None = None
    embedding: bytes = b""
    prompt: list[PromptLogprobs] = field(default_factory=list)


def submit(
    engine: Engine,
    ours: Ours,
    name: str,
    asked: Asked,
    eos: tuple[int, ...] = (),
    adapter: AdapterRef | None = None,
    pooling: Pooling | None = None,
) -> Prompt:
    made = prompt(ours, asked.ids, asked.images)
    shown = [image.pixels if isinstance(image, VisualItem) else image for image in asked.images]
    digests = [image_digest(image, ours.spec, ImageBudget()) for image in shown]
    items = [replace(item, digest=digest) for item, digest in zip(made.items, digests, strict=True)]
    message = Submit(
        name,
        asked.sampling,
        1 if pooling is not None else asked.count,
        eos,
        made.delta,
        len(made.positions),
        made.expanded.spans,
        describe(items),
        visible_images(made.expanded.visible),
        adapter=adapter,
        guided=asked.guided,
        min_tokens=asked.min_tokens,
        pooling=pooling,
        priority=asked.priority,
        prompt_logprobs=asked.prompt_logprobs,
    )
    engine.submit(message, arrays_of(made.expanded.ids, made.positions, items))
    return made


def collect(outputs: Sequence[Output], answers: dict[str, Answer]) -> None:
    for output in outputs:
        answer = answers.setdefault(output.request_id, Answer())
        answer.tokens += output.ids
        answer.logprobs += output.logprobs
        answer.prompt += output.prompt
        answer.finish = output.finish or answer.finish
        answer.error = output.error or answer.error
        answer.embedding = output.embedding or answer.embedding
        answer.cached = max(answer.cached, output.cached_tokens)


def run(engine: Engine, steps: int = 5000, patient: bool = False) -> dict[str, Answer]:
    """patient: what is compiled or read meanwhile is waited for."""
    answers: dict[str, Answer] = {}
    for _ in range(steps):
        if not engine.busy:
            if not (patient and engine.sequences):
                return answers
            select.select(engine.wakers, [], [], 10)
        collect(engine.step(), answers)
    raise AssertionError("the engine did not finish")


def ask(engine: Engine, ours: Ours, asked: Sequence[Asked], eos: tuple[int, ...] = ()) -> list[Answer]:
    """All at once."""
    for i, one in enumerate(asked):
        submit(engine, ours, str(i), one, eos)
    answers = run(engine, patient=any(one.guided is not None for one in asked))
    return [answers[str(i)] for i in range(len(asked))]
