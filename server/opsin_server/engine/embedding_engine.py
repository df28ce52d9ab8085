"""The engine of a dual encoder: texts and pictures come in, embeddings go out. There are no keys and values, so that a
request is one row of one step: `step` takes those that came first, texts together and pictures together."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from opsin_kernels.transfer import moved, on_device
from opsin_plugins.blocks.dual_encoder import DualEncoderModule
from opsin_plugins.spec import DualEncoderSpec, SpecError
from opsin_server.engine.engine import MAX_FAILURES, EngineBroken
from opsin_server.ipc.engine_socket import HasFileno
from opsin_server.ipc.messages import AdapterRef, AdapterReport, Arrays, Output, Stats, Submit

log = logging.getLogger("opsin.engine")

NO_NUMBERS = "the model's embedding for this request is no numbers"


@dataclass(frozen=True)
class StepLimits:
    """Of one step: tokens of texts, patches of pictures, and both together in requests. The first request of a step is
    taken whatever its size."""

    tokens: int
    patches: int
    requests: int


@dataclass(frozen=True)
class Waiting:
    """A request with a text, or with one picture."""

    message: Submit
    arrays: Arrays
    arrived: float = field(default_factory=time.monotonic)

    @property
    def is_picture(self) -> bool:
        return bool(self.message.items)

    @property
    def size(self) -> int:
        """Its tokens, or its patches."""
        return self.message.items[0].shape[0] if self.is_picture else len(self.arrays.ids)


Embed = Callable[[Sequence[Waiting]], Tensor]


class EmbeddingEngine:
    """What `worker.serve` steps, as it does an `Engine`."""

    wakers: tuple[HasFileno, ...] = ()  # there is nothing to be read beside messages

    def __init__(
        self, model: DualEncoderModule, spec: DualEncoderSpec, limits: StepLimits, device: torch.device
    ) -> None:
        self.model, self.spec, self.limits, self.device = model, spec, limits, device
        self.waiting: dict[str, Waiting] = {}  # in the order in which they came
        self.steps = self.failures = 0  # failures: steps in a row
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def close(self) -> None:
        """Nothing runs beside the steps."""

    def keep_adapters(self, refs: tuple[AdapterRef, ...]) -> None:
        """There are no slots for any."""

    def adapter_report(self) -> AdapterReport | None:
        return None

    def submit(self, message: Submit, arrays: Arrays) -> None:
        """Raises SpecError for what must not reach the model; nothing of it is kept then."""
        if message.request_id in self.waiting:
            raise SpecError(f"request {message.request_id} is already here")
        if message.pooling is None or message.adapter is not None:
            raise SpecError("this model makes embeddings, without adapters, and answers nothing")
        if message.items:
            _check_picture(message, self.spec)
        else:
            _check_text(arrays, self.spec)
        self.waiting[message.request_id] = Waiting(message, arrays)

    def cancel(self, request_id: str) -> None:
        """Unknown ids are ignored: the request may have ended while the message travelled."""
        self.waiting.pop(request_id, None)

    @torch.no_grad()
    def step(self) -> list[Output]:
        """Embeds the most urgent requests, and of these the ones that came first. One that cannot be computed ends
        alone. Raises EngineBroken when step after step fails, or the device does not answer any more."""
        taken, began = self._take(), time.monotonic()
        self.steps += 1
        outputs: list[Output] = []
        for name, embed, part in (
            ("texts", self._texts, sorted((w for w in taken if not w.is_picture), key=lambda w: w.size)),
            ("pictures", self._pictures, [w for w in taken if w.is_picture]),
        ):
            if part:
                clock = time.perf_counter()
                outputs += self._embedded(embed, part, began)
                self._seconds[f"embed.{name}"] += time.perf_counter() - clock
        self.failures = self.failures + 1 if any(o.error not in (None, NO_NUMBERS) for o in outputs) else 0
        if self.failures >= MAX_FAILURES:
            raise EngineBroken(f"{self.failures} steps in a row failed")
        return outputs

    def _take(self) -> list[Waiting]:
        taken: list[Waiting] = []
        sizes = {True: 0, False: 0}
        for waiting in sorted(self.waiting.values(), key=lambda waiting: waiting.message.priority):
            sizes[waiting.is_picture] += waiting.size
            full = sizes[True] > self.limits.patches or sizes[False] > self.limits.tokens
            if taken and (full or len(taken) >= self.limits.requests):
                break
            taken.append(waiting)
        for waiting in taken:
            del self.waiting[waiting.message.request_id]
        return taken

    def _embedded(self, embed: Embed, part: Sequence[Waiting], began: float) -> list[Output]:
        """All in one pass; where that fails, each alone."""
        try:
            rows = embed(part).cpu().numpy()
        except Exception as error:
            log.exception("embedding %d requests failed", len(part))
            if isinstance(error, torch.AcceleratorError):
                raise EngineBroken(f"a step failed: {type(error).__name__}") from error
            if len(part) > 1:
                return [output for one in part for output in self._embedded(embed, [one], began)]
            message = "the engine could not compute this request"
            return [Output(part[0].message.request_id, finish="error", error=message)]
        return [_output(waiting, row, began) for waiting, row in zip(part, rows, strict=True)]

    def _texts(self, part: Sequence[Waiting]) -> Tensor:
        ids = on_device(np.concatenate([w.arrays.ids for w in part]).tolist(), torch.int64, self.device)
        return self.model.embed_texts(ids, [w.size for w in part])

    def _pictures(self, part: Sequence[Waiting]) -> Tensor:
        pixels = torch.from_numpy(np.concatenate([w.arrays.pixels[0] for w in part]))
        return self.model.embed_pictures(moved(pixels, self.device), [w.message.items[0] for w in part])

    def stats(self) -> Stats:
        return Stats(waiting=len(self.waiting), steps=self.steps, seconds=dict(self._seconds))


def _output(waiting: Waiting, row: np.ndarray, began: float) -> Output:
    name = waiting.message.request_id
    if not np.isfinite(row).all():
        return Output(name, finish="error", error=NO_NUMBERS)
    return Output(name, finish="stop", queue_seconds=began - waiting.arrived, embedding=row.astype("<f4").tobytes())


def _check_text(arrays: Arrays, spec: DualEncoderSpec) -> None:
    length, text = len(arrays.ids), spec.text
    least = text.context if text.fills else 1
    if not least <= length <= text.context:
        raise SpecError(f"a text of {length} tokens; this model takes {least} to {text.context}")
    if arrays.ids.min() < 0 or arrays.ids.max() >= text.vocab:
        raise SpecError(f"a token id is not below the number of embeddings, {text.vocab}")


def _check_picture(message: Submit, spec: DualEncoderSpec) -> None:
    item, vision = message.items[0], spec.vision
    frames, rows, columns = item.grid
    if len(message.items) != 1:
        raise SpecError(f"{len(message.items)} pictures in one request; an embedding is of one")
    if min(item.grid) < 1 or item.shape != (frames * rows * columns, vision.patch_dim):
        raise SpecError(f"pixels {item.shape} do not fit grid {item.grid}")
    if vision.position == "learned" and (frames, rows * columns + vision.class_token) != (1, vision.positions):
        raise SpecError(f"grid {item.grid} is not the one of this tower, of {vision.positions} positions")
    most = spec.image.max_pixels // vision.patch**2
    if vision.position != "learned" and (frames != 1 or rows * columns > most):
        raise SpecError(f"grid {item.grid} has more than the {most} patches that this model takes")
