"""The batched forward over the model's parameters, by name.

transformers loops over the images of a batch in the vision attention; with pictures of 36 visual tokens that loop
dominates. Here all pictures of a batch share one size, so the tower is one dense batch, and many questions about one
picture share its prefix (see packing). parity.check_parity() proves that the result is transformers'.

Shapes: B pictures, N patches, M = N / 4 visual tokens, R rows, K pictures a row, P prefix, T branch tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_opsin.labels import PATCH, merge_order
from mini_opsin.model import HEAD, NORM_EPS, ROPE_SECTIONS, ROPE_THETA, Sizes
from mini_opsin.packing import Layout

MEAN, STD = 0.5, 0.5
MIDDLE = 2  # the decoder layer after which a noun must know what it refers to
GELU = 1.702  # quick_gelu(y) = silu(1.702 y) / 1.702
EMBEDDING = "model.language_model.embed_tokens.weight"

Weights = dict[str, Tensor]
Rounded = Callable[[Tensor], Tensor]
"""Rows to what is seen of them: keys and values by attention, [..., HEAD], or inputs by linear layers."""


@dataclass(frozen=True)
class Rounding:
    """In the decoder. keep: of keys and values; meet: of what its linear layers multiply."""

    keep: Rounded = lambda rows: rows
    meet: Rounded = lambda rows: rows


EXACT = Rounding()


def cast(module: nn.Module, dtype: torch.dtype) -> Weights:
    """Parameters by name in dtype; gradients flow back to the fp32 masters."""
    return {name: p.to(dtype) for name, p in module.named_parameters()}


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return F.linear(x, w[name + ".weight"], w.get(name + ".bias"))


def joined(x: Tensor, w: Weights, names: list[str]) -> Tensor:
    """Several linear layers of one input as one product."""
    bias = torch.cat([w[n + ".bias"] for n in names]) if names[0] + ".bias" in w else None
    return F.linear(x, torch.cat([w[n + ".weight"] for n in names]), bias)


def layer_norm(x: Tensor, w: Weights, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], NORM_EPS)


def rms_norm(x: Tensor, w: Weights, name: str) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], w[name + ".weight"], NORM_EPS)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, L, D] turned by angles [.., L, D/2] (half-split layout)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def split_heads(x: Tensor) -> Tensor:
    """[B, L, H * HEAD] -> [B, H, L, HEAD]."""
    return x.view(*x.shape[:-1], -1, HEAD).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Plain attention: at these lengths torch's fused CPU kernel takes 2.7x as long forward and backward in bf16."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    return torch.matmul((scores if mask is None else scores + mask).softmax(-1), v)


def to_patches(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> normalised [B, N, 3 * 8 * 8], patches in merge order (2 x 2 neighbours together)."""
    b, h, w, _ = pixels.shape
    x = (pixels.float() / 255 - MEAN) / STD
    x = x.view(b, h // 16, 2, PATCH, w // 16, 2, PATCH, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    return x.reshape(b, (h // PATCH) * (w // PATCH), 3 * PATCH * PATCH)


def vision(w: Weights, sizes: Sizes, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [B, H, W, 3] -> (patch features [B, N, Dv], visual tokens [B, M, D])."""
    pre = "model.visual."
    kernel = w[pre + "patch_embed.proj.weight"].sum(2).flatten(1)  # a still picture fills both temporal slots
    x = F.linear(to_patches(pixels).to(kernel.dtype), kernel)
    cos, sin = _axial_rope(pixels, kernel.dtype)
    for i in range(sizes.vision_depth):
        block = f"{pre}blocks.{i}."
        y = layer_norm(x, w, block + "norm1")
        qkv = split_heads(linear(y, w, block + "attn.qkv"))
        q, k = rotate(qkv[:, : 2 * sizes.vision_heads], cos, sin).chunk(2, 1)
        y = attend(q, k, qkv[:, 2 * sizes.vision_heads :])
        x = x + linear(y.transpose(1, 2).flatten(2), w, block + "attn.proj")
        y = layer_norm(x, w, block + "norm2")
        # The factors of quick_gelu are moved into the small matrices.
        y = F.silu(F.linear(y, GELU * w[block + "mlp.fc1.weight"], GELU * w[block + "mlp.fc1.bias"]))
        x = x + F.linear(y, w[block + "mlp.fc2.weight"] / GELU, w[block + "mlp.fc2.bias"])
    y = layer_norm(x, w, pre + "merger.ln_q")
    y = F.gelu(linear(y.view(x.shape[0], -1, 4 * sizes.vision_dim), w, pre + "merger.mlp.0"))
    return x, linear(y, w, pre + "merger.mlp.2")


def _axial_rope(pixels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos, sin [N, HEAD / 2]: half of the frequencies follow a patch's row, half its column."""
    device, (_, h, w, _) = pixels.device, pixels.shape
    frequency = 10000.0 ** (-torch.arange(0, HEAD // 2, 2, device=device) / (HEAD // 2))
    sides = (torch.arange(h // PATCH, device=device), torch.arange(w // PATCH, device=device))
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    angle = torch.cat([merge_order(grid)[:, None] * frequency for grid in (rows, columns)], -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


@dataclass
class Decoded:
    final: Tensor  # [R, T, D] normalised hidden states of the branches
    visual: Tensor | None  # [R, K * M, D] visual tokens after the first layer
    middle: Tensor  # [R, T, D] the branches after layer MIDDLE
    late: Tensor  # [R, T, D] the branches before the last layer


def by_row(layout: Layout, visual: Tensor, per: int) -> Tensor:
    """The first pictures' visual tokens [B, M, D] as [R, per, M, D]: only they are asked about."""
    rows = layout.ids.shape[0]
    return visual[: rows * per].view(rows, per, *visual.shape[1:])


def decoder(w: Weights, sizes: Sizes, layout: Layout, images: Tensor | None, how: Rounding = EXACT) -> Decoded:
    """images [R, K, M, D]: the visual tokens of each row's K pictures, or None for rows without a picture."""
    table = w[EMBEDDING]
    prefix, visual_at = _embed_prefix(table, layout, images)
    p, early, taps = prefix.shape[1], None, []
    x = torch.cat([prefix, F.embedding(layout.ids.to(table.device), table)], 1)
    cos, sin = _mrope(layout.positions().to(table.device), table.dtype)
    mask = layout.mask(p, table.dtype).to(table.device)
    for i in range(sizes.layers):
        x = _decoder_layer(x, w, sizes, f"model.language_model.layers.{i}.", (cos, sin, mask), how)
        if i == 0 and visual_at:
            early = torch.cat([x[:, a : a + n] for a, n in visual_at], 1)
        taps.append(x[:, p:])
    return Decoded(rms_norm(taps[-1], w, "model.language_model.norm"), early, taps[MIDDLE], taps[-2])


def _embed_prefix(table: Tensor, layout: Layout, images: Tensor | None) -> tuple[Tensor, list[tuple[int, int]]]:
    """The prefix [R, P, D], and (start, length) of each picture's visual tokens in it."""
    parts: list[Tensor] = []
    visual_at: list[tuple[int, int]] = []
    for i, ids in enumerate(layout.prefix):
        if i and images is not None:
            visual_at.append((sum(part.shape[1] for part in parts), images.shape[2]))
            parts.append(images[:, i - 1])
        here = F.embedding(torch.tensor(ids, device=table.device), table)
        parts.append(here.expand(layout.ids.shape[0], -1, -1))
    return torch.cat(parts, 1), visual_at


def _decoder_layer(
    x: Tensor, w: Weights, sizes: Sizes, layer: str, where: tuple[Tensor, Tensor, Tensor], how: Rounding
) -> Tensor:
    cos, sin, mask = where
    q_heads, kv_heads = sizes.heads, sizes.kv_heads
    y = how.meet(rms_norm(x, w, layer + "input_layernorm"))
    qkv = split_heads(joined(y, w, [f"{layer}self_attn.{n}_proj" for n in "qkv"]))
    qk, v = torch.split(qkv, [q_heads + kv_heads, kv_heads], 1)
    q, k = torch.split(rotate(qk, cos, sin), [q_heads, kv_heads], 1)
    k, v, groups = how.keep(k), how.keep(v), q_heads // kv_heads
    y = attend(q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), mask)
    x = x + linear(how.meet(y.transpose(1, 2).flatten(2)), w, layer + "self_attn.o_proj")
    y = how.meet(rms_norm(x, w, layer + "post_attention_layernorm"))
    gate, up = joined(y, w, [layer + "mlp.gate_proj", layer + "mlp.up_proj"]).chunk(2, -1)
    return x + linear(how.meet(F.silu(gate) * up), w, layer + "mlp.down_proj")


def _mrope(positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """positions [3, R, L] -> cos, sin [R, 1, L, HEAD / 2]; each frequency follows the axis of its section."""
    frequency = ROPE_THETA ** (-torch.arange(0, HEAD, 2, device=positions.device) / HEAD)
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(ROPE_SECTIONS)).to(positions.device)
    angle = positions[axis].permute(1, 2, 0).float() * frequency
    return angle.cos()[:, None].to(dtype), angle.sin()[:, None].to(dtype)
