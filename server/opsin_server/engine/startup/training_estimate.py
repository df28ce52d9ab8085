"""What could be trained beside serving, known before any weight is read: the largest rank, micro-batch and picture.

It is counted as every run counts it before its first step, on tensors that have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from opsin_plugins.blocks.model import Model, build_model
from opsin_plugins.loading.lora_targets import LoraTargets
from opsin_plugins.spec import VisualItem
from opsin_server.engine.startup.inspect_checkpoint import InspectedCheckpoint, largest_image
from opsin_server.engine.startup.made_up_row import TEXT, made_up_row, to_the_end
from opsin_server.engine.startup.memory_plan import ResolvedConfig
from opsin_server.engine.training import memory
from opsin_server.engine.training.memory import LargestRow, TrainingMemory, trainee_bytes
from opsin_server.engine.training.micro_batch import collate
from opsin_server.engine.training.modules import trained_modules
from opsin_server.engine.training.trainee import Trainee
from opsin_server.ipc.memory_messages import TrainingEstimate
from opsin_server.ipc.training_settings import TrainingSettings

RANKS = (64, 32, 16, 8)
SMALLER = (1024, 256, 64)  # visual tokens of pictures that are tried where the largest does not fit
MICRO_BATCH = TrainingSettings(modules=()).micro_batch_tokens


def estimate_training(inspected: InspectedCheckpoint, resolved: ResolvedConfig) -> TrainingEstimate:
    """Of a run that goes on alone, over all linears that may be trained."""
    pool, least, sketch = resolved.memory["training"], 0, _Sketch(inspected)
    pictures: Iterable[VisualItem | None] = _pictures(inspected, resolved.max_image_tokens)
    if not pool:  # what the smallest needs is said, and nothing else
        pictures = list(pictures)[-1:]
    for item in pictures:
        counted, numbers = sketch.count(item), sketch.numbers
        row = _largest(inspected, item)
        for rank in RANKS:
            of_rank = replace(counted, fixed=counted.fixed - trainee_bytes(numbers - numbers * rank // RANKS[0]))
            least = of_rank.needs(row.tokens, row.patches)
            if least <= pool:
                batch = of_rank.settle(MICRO_BATCH, row, pool).micro_batch_tokens
                return TrainingEstimate(pool, rank, batch, 0 if item is None else item.tokens)
    return TrainingEstimate(pool, least=least)


def _pictures(inspected: InspectedCheckpoint, limit: int) -> Iterator[VisualItem | None]:
    """The largest (of `limit` visual tokens at most, where it can be resized), and smaller ones. None: without any."""
    before: int | None = None
    for tokens in (limit, *(smaller for smaller in SMALLER if smaller < limit)):
        item = largest_image(inspected.architecture, inspected.spec, tokens)
        if item is None and before is None:
            yield None
        if item is None or (before is not None and item.tokens >= before):
            return
        yield item
        before = item.tokens


def _largest(inspected: InspectedCheckpoint, item: VisualItem | None) -> LargestRow:
    """With one such picture."""
    if item is None:
        return LargestRow(TEXT, 0)
    in_prompt = item.tokens if inspected.spec.cross is None else 1
    return LargestRow(TEXT + in_prompt, item.pixels.shape[0])


class _Sketch:
    """A model, and what a run of the largest rank trains of it, that have shapes and no memory."""

    def __init__(self, inspected: InspectedCheckpoint) -> None:
        spec, linears, device = inspected.spec, inspected.linears, torch.device("cpu")
        targets = LoraTargets(inspected.rules, linears, inspected.architecture.lora_groups(spec))
        settings = TrainingSettings(modules=tuple(targets.modules(inspected.files.tensors)), rank=RANKS[0])
        sketch = build_model(spec, inspected.registry, device="meta", dtype=inspected.dtype, policy=inspected.policy)
        self._inspected, self._device = inspected, device
        # What the host computes (places, lengths) is there; what the device would hold has shapes alone.
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._mode:
            self._model = _weightless(sketch)
            self._trainee = Trainee(trained_modules(settings.modules, targets), linears, settings, device)
        self.numbers = len(self._trainee.flat)

    def count(self, item: VisualItem | None) -> TrainingMemory:
        """What the run needs. item: the picture of its row."""
        row, visual = made_up_row(self._inspected, item)
        with self._mode:
            batch, lora = collate([row], self._inspected.spec, self._device), self._trainee.lora(None)
            return to_the_end(memory.count(self._model, batch, visual, lora, self.numbers))


def _weightless(sketch: Model) -> Model:
    """A model on "meta" as one of the CPU: operations then choose what they would choose there."""
    for module in sketch.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu"), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
    return sketch
