"""How likely a model finds the tokens of a prompt itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from opsin_kernels.sampling import log_probabilities
from opsin_kernels.transfer import on_device
from opsin_server.engine.running.asked_rows import AskedRows
from opsin_server.engine.scheduling.plan import Chunk
from opsin_server.ipc.messages import PromptLogprobs

SCORED_ROWS = 64  # whose logits there are at a time: all of a chunk's would take a gigabyte


class ScoredPrompts:
    """What a step says of prompts, on its way from the device."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, int, Tensor, Tensor]] = []  # request, first token, I32 and F32, [1 + top, rows]
        self._copied: torch.cuda.Event | None = None

    def add(self, request_id: str, first: int, whole: Tensor, real: Tensor) -> None:
        """first: place in the prompt of the first token. whole I32 [1 + top, rows]: ranks, ids of the likeliest; real
        F32 of the same shape: log probabilities of the prompt's own tokens and of those."""
        if whole.device.type == "cuda":
            whole, real = (torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, True) for x in (whole, real))
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._parts.append((request_id, first, whole, real))

    def read(self) -> list[tuple[str, PromptLogprobs]]:
        """By the request's id."""
        if self._copied is not None:
            self._copied.synchronize()
        return [
            (name, PromptLogprobs(first, len(whole) - 1, whole.numpy().tobytes(), real.numpy().tobytes()))
            for name, first, whole, real in self._parts
        ]


def score_prompts(
    states: Tensor, asked: AskedRows, logits_of: Callable[[Tensor, Chunk], Tensor]
) -> ScoredPrompts | None:
    """states [M, H]: of all rows that were asked for. logits_of: of some rows' states, as their chunk's adapter has it.
    None: nothing is scored. A sequence knows from here on how far it is."""
    if not asked.scored:
        return None
    found = ScoredPrompts()
    for chunk, rows in asked.scored:
        sequence, first = chunk.sequence, max(chunk.start, chunk.sequence.scored)
        for at in range(rows.start, rows.stop, SCORED_ROWS):
            piece = states[at : min(at + SCORED_ROWS, rows.stop)]
            logits, after = logits_of(piece, chunk), first + 1
            ids = on_device(sequence.tokens[after : after + len(piece)], torch.int64, states.device)
            found.add(sequence.request_id, after, *_scored(logits, ids, sequence.prompt_logprobs))
            first += len(piece)
        sequence.scored = first
    return found


def _scored(logits: Tensor, ids: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """As of `ScoredPrompts.add`. An id that no token is drawn by (a picture's placeholder) is taken for the last."""
    ids = ids.clamp(max=logits.shape[-1] - 1)
    chosen, likeliest, values = log_probabilities(logits, ids, top)
    ranks = (logits > logits.gather(-1, ids[:, None])).sum(-1) + 1
    whole = torch.cat([ranks[None], likeliest.T]).int()
    return whole, torch.cat([chosen[None], values.T]).float().contiguous()
