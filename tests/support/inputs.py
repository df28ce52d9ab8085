"""A prompt of ours as the arguments of transformers' models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.mllama import processing_mllama

from opsin_plugins.spec import ModelSpec, TiledTowerSpec, TowerSpec, VisualItem

if TYPE_CHECKING:
    from support.oracle import Prompt


def normalised(item: VisualItem, vision: TowerSpec) -> Tensor:
    """F32 [N, 3, p, p] as the published processors give it."""
    pixels = torch.from_numpy(item.pixels).view(-1, 3, vision.patch, vision.patch).float() / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in (vision.mean, vision.std))
    return (pixels - mean) / std


def whole(item: VisualItem, spec: ModelSpec) -> Tensor:
    """F32 [t, 3, H, W]: the patches of every frame or tile back in their places."""
    assert spec.vision is not None
    assert spec.image is not None
    (frames, rows, columns), m, p = item.grid, spec.image.merge, spec.vision.patch
    split = normalised(item, spec.vision).view(frames, rows // m, columns // m, m, m, 3, p, p)
    return split.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(frames, 3, rows * p, columns * p)


def their_inputs(spec: ModelSpec, asked: Prompt) -> dict[str, Any]:
    ids = asked.ids[None]
    inputs: dict[str, Any] = {"input_ids": ids}
    if not asked.items:
        return inputs  # (without images Qwen2-VL gives its own positions, which are the plain ones)
    return inputs | MAKERS[spec.family](spec, asked)


def _qwen2(spec: ModelSpec, asked: Prompt) -> dict[str, Any]:
    assert spec.vision is not None
    images = [i for i in asked.items if i.video is None]
    videos = [i for i in asked.items if i.video is not None]
    tokens = spec.image_token, -1 if spec.video_token is None else spec.video_token
    still, moving = (asked.ids[None] == token for token in tokens)
    found: dict[str, Any] = {"mm_token_type_ids": still.int() + 2 * moving.int()}
    if images:
        patches = [normalised(i, spec.vision)[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1) for i in images]
        found |= {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor([i.grid for i in images])}
    if videos:
        patches = [
            normalised(i, spec.vision).unflatten(0, (-1, i.patch_rows)).transpose(1, 2).flatten(1) for i in videos
        ]
        found |= {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.tensor([i.grid for i in videos])}
    if videos and spec.family == "qwen2_5_vl":
        seconds = [2 / i.video.sampled_fps for i in videos if i.video is not None]
        found["second_per_grid_ts"] = torch.tensor(seconds)
    return found


def _stacked(spec: ModelSpec, asked: Prompt) -> dict[str, Any]:
    return {"pixel_values": torch.cat([whole(item, spec) for item in asked.items])}


def _padded(spec: ModelSpec, asked: Prompt) -> dict[str, Any]:
    images = [whole(item, spec)[0] for item in asked.items]
    height, width = (max(i.shape[d] for i in images) for d in (1, 2))
    padded = [F.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor([i.shape[1:] for i in images])}


def _next(spec: ModelSpec, asked: Prompt) -> dict[str, Any]:
    tiles = [whole(item, spec) for item in asked.items]
    most = max(len(t) for t in tiles)
    padded = [F.pad(t, (0, 0, 0, 0, 0, 0, 0, most - len(t))) for t in tiles]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(asked.sizes)}


def _tiles(spec: ModelSpec, asked: Prompt) -> dict[str, Any]:
    return {"pixel_values": torch.cat([whole(item, spec) for item in asked.items])[None]}


def _mllama(spec: ModelSpec, asked: Prompt) -> dict[str, Any]:
    assert isinstance(spec.vision, TiledTowerSpec)
    most, ids = spec.vision.max_tiles, asked.ids.tolist()
    tiles = [whole(item, spec) for item in asked.items]
    masks = [torch.arange(most) < len(t) for t in tiles]
    seen = processing_mllama.get_cross_attention_token_mask(ids, spec.image_token)
    dense = processing_mllama.convert_sparse_cross_attention_mask_to_dense(
        [seen], [[len(t) for t in tiles]], most, len(ids)
    )
    arrangements = spec.vision.arrangements
    return {
        "pixel_values": torch.stack([F.pad(t, (0, 0, 0, 0, 0, 0, 0, most - len(t))) for t in tiles])[None],
        "aspect_ratio_ids": torch.tensor([[arrangements.index(i.tiles) + 1 for i in asked.items]]),
        "aspect_ratio_mask": torch.stack(masks).long()[None],
        "cross_attention_mask": torch.from_numpy(dense),
    }


MAKERS = {
    "qwen2_vl": _qwen2,
    "qwen2_5_vl": _qwen2,
    "qwen3_vl": _qwen2,
    "llava": _stacked,
    "qwen.visual": _stacked,
    "llava.pixtral": _padded,
    "mistral_params": _padded,
    "mistral3": _padded,
    "llava_next": _next,
    "idefics3": _tiles,
    "smolvlm": _tiles,
    "mllama": _mllama,
}
