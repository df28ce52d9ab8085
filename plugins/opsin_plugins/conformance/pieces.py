"""Checks of the pieces that a forward pass can be run in, and of rows that are not asked for."""

from __future__ import annotations

from dataclasses import replace

import torch

from opsin_plugins.blocks import inputs
from opsin_plugins.blocks.adapter_slots import AdapterSlots, AdapterWeights
from opsin_plugins.blocks.stages import run_stages
from opsin_plugins.conformance.adapters import RANKS, random_adapter
from opsin_plugins.conformance.batches import Adapters, Piece, encode, model_inputs, orders_of, pixels_of, visual
from opsin_plugins.conformance.subject import Subject
from opsin_plugins.conformance.verdicts import near

SAME, SELECTED = 0.0, 1e-5


@torch.no_grad()
def stages(subject: Subject) -> str:
    """The composition of all stages is the forward pass, from pixels to states, to the last bit, for the base model and
    with adapters; and the states of the rows that are wanted do not depend on which they are."""
    rank = max(RANKS)
    slots = AdapterSlots(subject.linears, len(RANKS), rank)
    for number, own in enumerate(RANKS, 1):
        slots.load(number, AdapterWeights(random_adapter(subject.linears, own, number)))
    mixed = Adapters(slots, [number % (len(RANKS) + 1) for number in range(1, len(subject.prompts) + 1)])
    count = 0
    for adapters in (None, mixed):
        count = _composed(subject, adapters, "" if adapters is None else " with adapters")
    return f"{count} pieces"


def _composed(subject: Subject, adapters: Adapters | None, how: str) -> int:
    """How many pieces there are."""
    model, prompts = subject.model, subject.prompts
    items = [item for prompt in prompts for item in prompt.items]
    owners = [number for number, prompt in enumerate(prompts) for _ in prompt.items]
    lora = None if adapters is None else adapters.lora(owners, [0] * len(owners))
    tokens, count = encode(model, items, lora), 0
    if items:
        pieces = model.encode_stages(items, orders_of(items), lora)
        found = run_stages(pieces, {"pixels": pixels_of(items)})
        near(f"visual tokens in stages and at once{how}", found["tokens"], torch.cat(tokens), SAME)
        count += len(pieces)
    rest = iter(tokens)
    parts = [Piece(i, p, [next(rest) for _ in p.items], 0, len(p)) for i, p in enumerate(prompts)]
    ids, rows, seen = inputs.token_ids(parts), model_inputs(model, parts, None, adapters), visual(parts)
    states = model(ids, rows, None, seen)
    pieces = model.stages(ids, rows, seen)
    given = {} if seen is None else {"tokens": seen.tokens}
    if rows.cross is not None and rows.cross.states is not None:
        given["states"] = rows.cross.states
    near(f"states in stages and at once{how}", run_stages(pieces, given)["x"], states, SAME)
    last = torch.tensor([part.stop for part in parts]).cumsum(0) - 1
    asked = replace(
        rows, wanted=last, lora_of_wanted=None if rows.lora is None else rows.lora.resized([1] * len(parts))
    )
    near(f"states of some rows and of all{how}", model(ids, asked, None, seen), states[last], SELECTED)
    return count + len(pieces)
