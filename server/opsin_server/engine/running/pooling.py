"""States to embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from opsin_server.engine.running.asked_rows import AskedRows
from opsin_server.engine.running.sampler import SampledToken
from opsin_server.engine.scheduling.plan import Chunk


class PooledStates:
    """The embeddings of the requests whose prompts a step ends, on their way from the device."""

    def __init__(self, chunks: list[Chunk], vectors: Tensor) -> None:
        self._chunks, self._vectors = chunks, vectors
        self._copied: torch.cuda.Event | None = None
        if vectors.device.type == "cuda":
            self._vectors = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
            self._vectors.copy_(vectors, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> dict[str, bytes | None]:
        """By the request's id, F32, little-endian; None: there are no numbers."""
        if self._copied is not None:
            self._copied.synchronize()
        rows, finite = self._vectors.numpy(), self._vectors.isfinite().all(1).tolist()
        return {
            chunk.sequence.request_id: row.astype("<f4").tobytes() if good else None
            for chunk, row, good in zip(self._chunks, rows, finite, strict=True)
        }


def pooled_states(states: Tensor, asked: AskedRows, norm: Callable[[Tensor], Tensor]) -> PooledStates | None:
    """states [M, H]: of all rows that were asked for, before the last norm. None: no prompt ends in this step. What is
    pooled of a prompt so far is kept in its sequence: a chunk that begins at its first token begins anew."""
    for chunk, rows in asked.pooled:
        sequence, vector = chunk.sequence, norm(states[rows]).float().sum(0)
        before = sequence.pooled if chunk.start else None
        sequence.pooled = vector + before if isinstance(before, Tensor) else vector
    ended = [chunk for chunk in asked.pooling if chunk.samples]
    return PooledStates(ended, torch.stack([_vector(chunk) for chunk in ended])) if ended else None


def _vector(chunk: Chunk) -> Tensor:
    pooling, found = chunk.sequence.pooling, chunk.sequence.pooled
    assert pooling is not None
    assert isinstance(found, Tensor)
    vector = found / chunk.sequence.prompt_length if pooling.kind == "mean" else found
    return F.normalize(vector, dim=0) if pooling.normalized else vector


def with_embeddings(
    drawn: Sequence[SampledToken], chunks: Sequence[Chunk], embeddings: Mapping[str, bytes | None]
) -> list[SampledToken]:
    """One of each chunk that samples, in order: what was drawn, and in place of what was not a token that nobody reads,
    or none where an embedding is no numbers."""
    rest = iter(drawn)
    return [
        next(rest)
        if chunk.sequence.pooling is None
        else SampledToken(None if embeddings[chunk.sequence.request_id] is None else 0, None)
        for chunk in chunks
        if chunk.samples
    ]
