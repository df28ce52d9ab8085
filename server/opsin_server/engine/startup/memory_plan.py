"""One ledger of memory, written before anything is allocated: named reserves, and what is left. Nothing is decided
later."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from opsin_kernels.kv_rows import SCALE_BYTES
from opsin_plugins.blocks.adapter_slots import slot_bytes
from opsin_plugins.spec import DecoderSpec, Linears, ModelSpec, VisualItem
from opsin_server.config import EngineConfig, KvDType
from opsin_server.engine.running.prompt_logprobs import SCORED_ROWS
from opsin_server.engine.running.runner import visual_levels
from opsin_server.engine.startup.activations import capture_bytes, encode_bytes, gathered_bytes, step_bytes
from opsin_server.engine.startup.adapter_room import adapter_room
from opsin_server.engine.startup.device import computes_fp8
from opsin_server.engine.training.memory import trainee_bytes
from opsin_server.errors import ConfigError
from opsin_server.ipc.memory_messages import AdapterRoom, MemoryLedger, Reserve

GIB = 2**30
# On a CPU the pool shares memory with everything else that runs there; on a GPU it may have what the others leave.
KV_SHARE = {"cpu": 0.25, "cuda": 0.9}
KV_LIMIT = {"cpu": 4 * GIB, "cuda": 1024 * GIB}
BATCH_TOKENS = {"cpu": 256, "cuda": 2048}  # a prefill step of 256 rows keeps the pause of others near ten decode steps
ENCODER_BYTES, ENCODER_SHARE = 256 * 2**20, 0.1  # of visual tokens that are kept, if so little of what is free
CROSS_IMAGES, CROSS_SHARE = 16, 0.2  # how many of the largest images with keys and values, if that much is free
TRAIN_FREE = {"cpu": 10 * GIB, "cuda": 1024 * GIB}  # of more a part is not taken: a CPU's memory is everybody's
TRAIN_RANK, TRAIN_LEAST = 16, 64 * 2**20  # of activations, beside the numbers that are trained
LIBRARY_BYTES = {"cpu": 0, "cuda": 256 * 2**20}  # workspaces of cuBLAS and fragments; assumed
ENCODE_PATCHES, ENCODE_SHARE = {"cpu": 4096, "cuda": 65536}, 0.05


@dataclass(frozen=True)
class ModelNeeds:
    """What must be known of a model to divide memory for it. weights: bytes of all its tensors. largest: the largest
    image under a limit of `image_tokens`, where its family can resize; None: it takes none."""

    spec: ModelSpec
    linears: Linears
    weights: int
    dtype: torch.dtype
    image_tokens: int
    largest: VisualItem | None

    @property
    def visual_token_bytes(self) -> int:
        """What is kept of a visual token."""
        decoder, item = self.spec.decoder, self.dtype.itemsize
        if self.spec.cross is not None:
            return cross_kv_bytes_per_token(decoder, item)
        return decoder.width * (1 + visual_levels(self.spec)) * item

    @property
    def largest_image(self) -> int:
        """Visual tokens of it that are kept."""
        if self.spec.cross is not None:
            return self.spec.cross.max_tokens
        return 0 if self.largest is None else self.largest.tokens


@dataclass(frozen=True)
class ResolvedConfig:
    """The engine's settings with nothing left open."""

    device: torch.device
    dtype: torch.dtype
    max_context: int
    max_batch_tokens: int
    max_encode_patches: int
    max_image_tokens: int  # of one image, where its family can resize
    memory: MemoryLedger


def resolve(config: EngineConfig, model: ModelNeeds, device: torch.device, free: int) -> ResolvedConfig:
    """free: bytes on the device before anything is there. Raises ConfigError when the model does not fit."""
    _check_kv_dtype(config, model.spec.decoder, device)
    if model.weights > free:
        raise ConfigError(
            f"the weights need {model.weights:,} bytes as {str(model.dtype).removeprefix('torch.')}; {free:,} are free "
            f"on {device.type}: {model.weights - free:,} too few"
        )
    spec, size = model.spec, config.block_size
    if config.max_context is not None and config.max_context > spec.max_positions:
        raise ConfigError(f"--max-context {config.max_context}: this model was made for {spec.max_positions} positions")
    context = config.max_context or spec.max_positions
    tokens = _batch_tokens(config, device)
    encoder_blocks = _encoder_blocks(config, model, free - model.weights)
    room = adapter_room(config, spec, model.linears, model.dtype.itemsize, free - model.weights)
    fixed = _fixed_reserves(config, model, device, tokens, context, encoder_blocks, room, free - model.weights)
    for images in _images_at_once(model, device, free - model.weights):
        patches, encode = _encode(model, device, images)
        reserves = fixed | {"largest encode": encode}
        blocks = _kv_blocks(config, model, device, free - sum(reserves.values()), context)
        if blocks * size >= context:
            break
    per_block = kv_bytes_per_token(spec.decoder, model.dtype.itemsize, config.kv_dtype) * size
    reserves["keys and values"] = max(1, blocks) * per_block
    if device.type == "cpu":
        reserves["largest step"] += gathered_bytes(spec.decoder, min(blocks * size, config.max_sequences * context))
    named = tuple(Reserve(name, count) for name, count in reserves.items() if count)
    ledger = MemoryLedger(free, named, blocks, encoder_blocks, size, room)
    _check_room(config, ledger, device, context, per_block)
    return ResolvedConfig(
        device=device,
        dtype=model.dtype,
        max_context=min(context, blocks * size),
        max_batch_tokens=tokens,
        max_encode_patches=patches,
        max_image_tokens=model.image_tokens,
        memory=ledger,
    )


def _check_kv_dtype(config: EngineConfig, spec: DecoderSpec, device: torch.device) -> None:
    """Raises ConfigError for 8 bits that the device's kernels do not read."""
    if config.kv_dtype == "auto" or device.type == "cpu":
        return
    if spec.head_dim % SCALE_BYTES:
        raise ConfigError(f"--kv-dtype {config.kv_dtype} on a GPU: heads of {spec.head_dim} are no multiple of 4")
    if config.kv_dtype == "fp8" and not computes_fp8(device):
        raise ConfigError("--kv-dtype fp8 needs a GPU of compute capability 8.9 or more; int8 does with any")


def _check_room(config: EngineConfig, ledger: MemoryLedger, device: torch.device, context: int, per_block: int) -> None:
    """Raises ConfigError for what is asked for and is not there, with the numbers."""
    if ledger.slack < 0:
        parts = ", ".join(f"{reserve.name} {reserve.bytes:,}" for reserve in ledger.reserves)
        raise ConfigError(
            f"{parts} are {ledger.reserved:,} bytes; {ledger.free:,} are free on {device.type}: {-ledger.slack:,} too "
            "few. Less is needed with a smaller --max-image-tokens, --max-sequences, --max-batch-tokens, --max-loras, "
            "--kv-memory, --encoder-memory or --max-context, or with a --dtype of 16 bit"
        )
    kv = ledger.kv_blocks * per_block if config.kv_memory is None else config.kv_memory
    if ledger.kv_blocks < 1:
        raise ConfigError(f"{kv:,} bytes hold no KV block of {per_block:,} (--kv-memory)")
    if config.max_context is not None and ledger.kv_blocks * ledger.block_size < context:
        raise ConfigError(
            f"--max-context {context} needs {-(-context // ledger.block_size) * per_block:,} bytes of KV memory; there "
            f"are {kv:,} (--kv-memory)"
        )


def _batch_tokens(config: EngineConfig, device: torch.device) -> int:
    tokens = config.max_batch_tokens or max(BATCH_TOKENS[device.type], config.max_sequences)
    if tokens < config.max_sequences:
        raise ConfigError(
            f"--max-batch-tokens {tokens} is less than --max-sequences {config.max_sequences}: a step must have a row "
            "for each sequence"
        )
    return tokens


def _images_at_once(model: ModelNeeds, device: torch.device, free: int) -> list[int]:
    """How many of the largest images a step encodes together: as many as fit into a share of what is free; or one,
    where more would shorten the context."""
    if model.largest is None:
        return [1]
    one, patches = encode_bytes(model.spec, model.largest, model.dtype.itemsize), math.prod(model.largest.grid)
    return [max(1, min(ENCODE_PATCHES[device.type] // patches, int(free * ENCODE_SHARE) // one)), 1]


def _encode(model: ModelNeeds, device: torch.device, images: int) -> tuple[int, int]:
    """Patches that a step encodes at most beyond its first image, and bytes that encoding takes meanwhile."""
    if model.largest is None:
        return ENCODE_PATCHES[device.type], 0
    patches = min(ENCODE_PATCHES[device.type], images * math.prod(model.largest.grid))
    return patches, images * encode_bytes(model.spec, model.largest, model.dtype.itemsize)


def _fixed_reserves(
    config: EngineConfig,
    model: ModelNeeds,
    device: torch.device,
    tokens: int,
    context: int,
    encoder_blocks: int,
    room: AdapterRoom,
    free: int,
) -> dict[str, int]:
    """What does not depend on how much is left for keys and values. free: what the weights leave. Bytes, by name."""
    spec, item = model.spec, model.dtype.itemsize
    found = {
        "weights": model.weights,
        "visual tokens" if spec.cross is None else "cross-attention keys and values": (
            encoder_blocks * config.block_size * model.visual_token_bytes
        ),
        "largest step": step_bytes(spec, tokens, max(config.max_sequences, SCORED_ROWS), item),
        "largest encode": 0,
        "captures": 0,
        "libraries": LIBRARY_BYTES[device.type],
        "adapter slots": room.slots * room.slot_bytes,
        # Adapters that are read, for slots that they may be put into: in the machine's own memory.
        "host copies": room.host_copies * room.slot_bytes if device.type == "cpu" else 0,
        # On a CPU the adapters of the last steps are also kept side by side: all that have a slot, at most.
        "adapters side by side": room.slots * room.slot_bytes if device.type == "cpu" else 0,
        "training": _training_bytes(config, model, device, free),
    }
    if device.type == "cuda" and not config.eager:
        forms = (2 if room.slots else 1) * (2 if spec.cross is not None else 1)
        found["captures"] = capture_bytes(spec, config.max_sequences, context, config.block_size, item, forms)
    return found


def _training_bytes(config: EngineConfig, model: ModelNeeds, device: torch.device, free: int) -> int:
    """A share of what the weights leave (free), unless that could not hold a run of rank TRAIN_RANK and its optimizer:
    what is too little to train with is better used for keys and values."""
    if config.train_memory is not None:
        return config.train_memory
    share = int(config.train_part * min(free, TRAIN_FREE[device.type]))
    least = TRAIN_LEAST + trainee_bytes(slot_bytes(model.linears, TRAIN_RANK, 1))
    return share if share >= least else 0


def _kv_blocks(config: EngineConfig, model: ModelNeeds, device: torch.device, left: int, context: int) -> int:
    """left: bytes that no other reserve has."""
    per_block = kv_bytes_per_token(model.spec.decoder, model.dtype.itemsize, config.kv_dtype) * config.block_size
    if config.kv_memory is not None:
        return config.kv_memory // per_block
    wanted = config.max_sequences * -(-context // config.block_size)
    share = int(min(left * KV_SHARE[device.type], KV_LIMIT[device.type])) // per_block
    return max(int(left >= per_block), min(wanted, share))  # (a share of little may be none)


def _encoder_blocks(config: EngineConfig, model: ModelNeeds, free: int) -> int:
    """Blocks for what is kept of pictures. They hold the largest in any case: it must be computed at some time."""
    if model.spec.vision is None:
        return 0
    block = model.visual_token_bytes * config.block_size
    image = -(-model.largest_image // config.block_size)
    if config.encoder_memory is None:
        if model.spec.cross is not None:
            return max(image, min(CROSS_IMAGES * image, int(free * CROSS_SHARE) // block))
        return max(image, min(ENCODER_BYTES, int(free * ENCODER_SHARE)) // block)
    if config.encoder_memory < image * block:
        smaller = " (see --max-image-tokens)" if model.spec.image is not None and model.spec.image.resizable else ""
        raise ConfigError(
            f"--encoder-memory {config.encoder_memory:,} bytes do not hold the largest image, which takes "
            f"{image * block:,}{smaller}"
        )
    return config.encoder_memory // block


def kv_bytes_per_token(spec: DecoderSpec, item: int, kept_as: KvDType = "auto") -> int:
    """item: bytes of a number of the model."""
    row = spec.head_dim * item if kept_as == "auto" else spec.head_dim + SCALE_BYTES
    return 2 * spec.own_layers * spec.kv_heads * row


def cross_kv_bytes_per_token(spec: DecoderSpec, item: int) -> int:
    """Of a visual token outside of the prompt: the layers that attend to it."""
    return 2 * len(spec.replaced) * spec.kv_heads * spec.head_dim * item
