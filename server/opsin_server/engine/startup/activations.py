"""What computing takes beside what is kept, about: activations of the largest step and of the largest encode.

Counted from the widest point of a layer. A layer's outputs go as the next layer's come, so one layer is all.
"""

from __future__ import annotations

from opsin_plugins.spec import DecoderSpec, ModelSpec, ProjectorSpec, TiledTowerSpec, TowerSpec, VisualItem
from opsin_server.engine.running.cuda_graphs import batch_sizes, context_sizes

CAPTURE_BYTES = 2 * 2**20  # of one recording, beside what all of them share; assumed, and told after a start
FLOAT = 4  # bytes of float32, in which logits are drawn from and pixels normalised


def step_bytes(spec: ModelSpec, tokens: int, sequences: int, item: int) -> int:
    """Of a decoder pass over `tokens` rows, and the logits of `sequences` of them."""
    decoder = spec.decoder
    heads = (2 * decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
    # Input, its norm, q, k and v, turned q, output; input, what is added, its norm, gate and up, their product, output.
    attention = 3 * decoder.width + heads + decoder.heads * decoder.head_dim
    mlp = 4 * decoder.width + 3 * decoder.mlp
    return tokens * max(attention, mlp) * item + sequences * decoder.vocab * (item + 2 * FLOAT)


def gathered_bytes(spec: DecoderSpec, tokens: int) -> int:
    """On a CPU a layer's keys and values are gathered from their blocks. tokens: the most that sequences have."""
    return 2 * tokens * 2 * spec.kv_heads * spec.head_dim * FLOAT


def capture_bytes(spec: ModelSpec, sequences: int, context: int, block_size: int, item: int, forms: int) -> int:
    """Of all recorded decode steps, their buffers at addresses that never change, and the activations that they share.
    forms: in how many each size is recorded (with adapters and without, with cross-attention and without)."""
    sizes, contexts = batch_sizes(sequences), context_sizes(context)
    buffers = sizes[-1] * (-(-context // block_size) * 4 + spec.decoder.vocab * item)
    return len(sizes) * len(contexts) * forms * CAPTURE_BYTES + buffers + step_bytes(spec, sizes[-1], sizes[-1], item)


def encode_bytes(spec: ModelSpec, image: VisualItem, item: int) -> int:
    """Of one image on its way through tower and projector: their widest point, and its pixels."""
    assert spec.vision is not None
    assert spec.projector is not None
    values = max(tower_values(spec.vision, image), _projector_values(spec.projector, image))
    return pixel_bytes(spec.vision, image, item) + item * values


def pixel_bytes(vision: TowerSpec, image: VisualItem, item: int) -> int:
    """Of its patches, as they come and normalised."""
    frames, rows, columns = image.grid
    return frames * rows * columns * vision.patch_dim * (1 + 2 * FLOAT + item)


def tower_values(vision: TowerSpec, image: VisualItem) -> int:
    """The wider of attention (its input, q, k and v, two of them turned, its output) and MLP (its input and two or
    three times its hidden width), with the taps."""
    frames, rows, columns = image.grid
    if isinstance(vision, TiledTowerSpec):
        count = vision.max_tiles * (-(-vision.positions // 8) * 8)
    else:
        count = frames * (rows * columns + vision.class_token)
    hidden = (3 if vision.gated_mlp else 2) * vision.mlp
    layer = max(8 * vision.width, 2 * vision.width + hidden)
    return count * (layer + (len(vision.taps) + 1) * vision.width)


def _projector_values(projector: ProjectorSpec, image: VisualItem) -> int:
    """Features as they are joined, and the hidden width twice. (Tokens may be fewer than what they are picked from.)"""
    frames, rows, columns = image.grid
    tokens = max(image.tokens, frames * rows * columns // projector.merge**2)
    joined = 2 * projector.in_width * projector.merge**2
    return tokens * (joined + projector.joined + 2 * projector.hidden + 2 * projector.out_width)
