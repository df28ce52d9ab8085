"""The proof that this package's forward is the model that everyone else runs."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

from mini_opsin.forward import EMBEDDING, cast, decoder, to_patches, vision
from mini_opsin.labels import PATCH
from mini_opsin.model import TEMPORAL, sizes_of
from mini_opsin.packing import Layout

TOLERANCE = 1e-4


@torch.no_grad()
def check_parity(model: Qwen2VLForConditionalGeneration, pixels: Tensor, layout: Layout) -> float:
    """Largest difference of fp32 logits between this forward and transformers' on row 0, branch by branch."""
    w = cast(model, torch.float32)
    sizes = sizes_of(w)
    _, visual = vision(w, sizes, pixels[:1])
    row = Layout(layout.prefix, layout.grid, layout.ids[:1], layout.offset[:1], layout.branch[:1])
    hidden = decoder(w, sizes, row, visual[:, None]).final
    worst = 0.0
    for branch in range(int(row.branch.max()) + 1):
        keep = row.branch[0] == branch
        ours = hidden[0, keep] @ w[EMBEDDING].T
        theirs = _transformers_logits(model, pixels, row, row.ids[0, keep].tolist())
        worst = max(worst, float((ours - theirs).abs().max()))
    return worst


def _transformers_logits(
    model: Qwen2VLForConditionalGeneration, pixels: Tensor, row: Layout, branch: list[int]
) -> Tensor:
    gh, gw = row.grid
    image = model.config.image_token_id
    ids = torch.tensor([row.prefix[0] + [image] * (gh * gw) + row.prefix[1] + branch])
    patches = to_patches(pixels[:1])[0].view(-1, 3, 1, PATCH, PATCH)
    out = model(
        input_ids=ids,
        pixel_values=patches.expand(-1, 3, TEMPORAL, PATCH, PATCH).flatten(1),
        image_grid_thw=torch.tensor([[1, 2 * gh, 2 * gw]]),
        mm_token_type_ids=(ids == image).int(),
    )
    return out.logits[0, -len(branch) :]
