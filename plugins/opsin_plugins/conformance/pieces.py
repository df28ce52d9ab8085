"""Checks of the pieces that a forward pass can be run in, and of rows that are not asked for."""

from __future__ import annotations

from dataclasses import replace

import torch

from opsin_plugins.blocks import inputs
from opsin_plugins.blocks.stages import run_stages
from opsin_plugins.conformance.batches import Piece, encode, model_inputs, orders_of, pixels_of, visual
from opsin_plugins.conformance.subject import Subject
from opsin_plugins.conformance.verdicts import near

SAME, SELECTED = 0.0, 1e-5


@torch.no_grad()
def stages(subject: Subject) -> str:
    """The composition of all stages is the forward pass, from pixels to states, to the last bit; and the states of the
    rows that are wanted do not depend on which they are."""
    model, prompts = subject.model, subject.prompts
    items = [item for prompt in prompts for item in prompt.items]
    tokens, count = encode(model, items), 0
    if items:
        pieces = model.encode_stages(items, orders_of(items))
        found = run_stages(pieces, {"pixels": pixels_of(items)})
        near("visual tokens in stages and at once", found["tokens"], torch.cat(tokens), SAME)
        count += len(pieces)
    rest = iter(tokens)
    parts = [Piece(i, p, [next(rest) for _ in p.items], 0, len(p)) for i, p in enumerate(prompts)]
    ids, rows, seen = inputs.token_ids(parts), model_inputs(model, parts), visual(parts)
    states = model(ids, rows, None, seen)
    pieces = model.stages(ids, rows, seen)
    given = {} if seen is None else {"tokens": seen.tokens}
    if rows.cross is not None and rows.cross.states is not None:
        given["states"] = rows.cross.states
    near("states in stages and at once", run_stages(pieces, given)["x"], states, SAME)
    wanted = torch.tensor([part.stop - 1 for part in parts]).cumsum(0) + torch.arange(len(parts))
    asked = replace(rows, wanted=wanted)
    error = near("states of some rows and of all", model(ids, asked, None, seen), states[wanted], SELECTED)
    return f"{count + len(pieces)} pieces; some rows within {error:.0e}"
