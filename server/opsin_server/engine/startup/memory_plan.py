"""Settles every "auto" of the engine once: device, types, and how memory is divided. Nothing is decided later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from opsin_plugins.spec import DecoderSpec, ModelFiles, ModelSpec
from opsin_server.config import EngineConfig
from opsin_server.errors import ConfigError
from opsin_server.ipc.messages import MemoryUse

GIB = 2**30
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# On a CPU the pool shares memory with everything else that runs there; on a GPU it may have what the weights leave.
KV_SHARE = {"cpu": 0.25, "cuda": 0.85}
KV_LIMIT = {"cpu": 4 * GIB, "cuda": 1024 * GIB}
BATCH_TOKENS = {"cpu": 256, "cuda": 2048}  # a prefill step of 256 rows keeps the pause of others near ten decode steps
ENCODER_BYTES = 256 * 2**20  # of cached visual tokens
MEMORY_IMAGES, MEMORY_SHARE = 16, 0.2  # how many of the largest images a memory holds, if that much is free
ENCODE_PATCHES = {"cpu": 4096, "cuda": 65536}


@dataclass(frozen=True)
class ResolvedConfig:
    """The engine's settings with nothing left open."""

    device: torch.device
    dtype: torch.dtype
    max_context: int
    max_batch_tokens: int
    max_encode_patches: int
    bytes_per_visual_token: int
    memory: MemoryUse
    cross_kv_blocks: int = 0  # of the second layer group, for visual tokens outside of the prompt


def choose_device(name: str) -> torch.device:
    """name: as in `EngineConfig.device`. A CUDA device has its index. Raises ConfigError for one that is not there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch sees no CUDA device")
    index, count = int(name.partition(":")[2] or 0), torch.cuda.device_count()
    if index >= count:
        raise ConfigError(f"--device {name}: torch sees {count} CUDA device{'s' * (count > 1)}, counted from cuda:0")
    return torch.device("cuda", index)


def choose_dtype(name: str, device: torch.device, files: ModelFiles) -> torch.dtype:
    """auto: 16 bit as stored on a GPU; float32 on a CPU, where 16-bit products are slower and less exact."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    stored = {info.dtype for info in files.tensors.values()}
    return torch.float16 if stored == {"F16"} else torch.bfloat16


def free_bytes(device: torch.device) -> int:
    """Memory that could be allocated now: the device's own, or the machine's within this process's control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_meminfo("MemAvailable"), _cgroup_left())


def _meminfo(field: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ConfigError(f"/proc/meminfo has no {field}")


def _cgroup_left() -> int:
    """A container's limit less what it uses. Kubernetes sets one far below the machine's memory."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            maximum, current = Path(limit).read_text().strip(), Path(used).read_text().strip()
        except OSError:
            continue
        if maximum.isdigit():
            return max(0, int(maximum) - int(current))
    return 2**63


def refuse_quantized(files: ModelFiles, parameters: int, device: torch.device, free: int) -> None:
    """Raises ConfigError for a checkpoint whose weights are packed in a form that is not read yet."""
    quantization = files.config.get("quantization_config")
    if quantization is None:
        return
    fields = quantization if isinstance(quantization, dict) else {"quant_method": quantization}
    scheme = fields.get("quant_method") or fields.get("quant_algo") or "unnamed"
    raise ConfigError(
        f"quantization_config {scheme!r} cannot be loaded by this version. In 16 bit this model needs "
        f"{2 * parameters:,} bytes of weights; {free:,} are free on {device.type}. Serve the "
        "unquantized checkpoint (with --quantize int8 its linears take half of that)"
    )


def resolve(
    config: EngineConfig,
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype,
    weights: int,
    free: int,
) -> ResolvedConfig:
    """weights: bytes that the model's tensors take on the device, of which `free` are free. Raises ConfigError when it
    does not fit."""
    if weights > free:
        raise ConfigError(
            f"the weights need {weights:,} bytes as {str(dtype).removeprefix('torch.')}; {free:,} are free on "
            f"{device.type}: {weights - free:,} too few"
        )
    item, decoder = dtype.itemsize, spec.decoder
    if config.max_context is not None and config.max_context > spec.max_positions:
        raise ConfigError(f"--max-context {config.max_context}: this model was made for {spec.max_positions} positions")
    per_block = kv_bytes_per_token(decoder, item) * config.block_size
    context = config.max_context or spec.max_positions
    wanted = config.max_sequences * -(-context // config.block_size) * per_block
    images = _image_memory(config, spec, item, free - weights)
    share = int((free - weights - images) * KV_SHARE[device.type])
    kv_bytes = config.kv_memory if config.kv_memory is not None else min(wanted, share, KV_LIMIT[device.type])
    needed = weights + images + kv_bytes
    if device.type != "cpu" and needed > free:  # (the CPU's pages are taken when they are first used)
        raise ConfigError(
            f"weights, --encoder-memory and --kv-memory need {needed:,} bytes; {free:,} are free on {device.type}"
        )
    blocks = kv_bytes // per_block
    if blocks < 1:
        raise ConfigError(f"{kv_bytes:,} bytes hold no KV block of {per_block:,} (--kv-memory)")
    if config.max_context is not None and blocks * config.block_size < context:
        raise ConfigError(
            f"--max-context {context} needs {-(-context // config.block_size) * per_block:,} bytes of KV memory; "
            f"there are {kv_bytes:,} (--kv-memory)"
        )
    tokens = config.max_batch_tokens or max(BATCH_TOKENS[device.type], config.max_sequences)
    if tokens < config.max_sequences:
        raise ConfigError(
            f"--max-batch-tokens {tokens} is less than --max-sequences {config.max_sequences}: a step must have a row "
            "for each sequence"
        )
    return ResolvedConfig(
        device=device,
        dtype=dtype,
        max_context=min(context, blocks * config.block_size),
        max_batch_tokens=tokens,
        max_encode_patches=ENCODE_PATCHES[device.type],
        bytes_per_visual_token=visual_token_bytes(spec, item),
        memory=MemoryUse(weights, blocks * per_block, blocks, config.block_size, images),
        cross_kv_blocks=0
        if spec.cross is None
        else images // (cross_kv_bytes_per_token(decoder, item) * config.block_size),
    )


def _image_memory(config: EngineConfig, spec: ModelSpec, item: int, free: int) -> int:
    """Bytes for visual tokens: cached ones, or for models with cross-attention their keys and values, which must hold
    the largest image."""
    if spec.cross is None:
        return ENCODER_BYTES if config.encoder_memory is None else config.encoder_memory
    block = cross_kv_bytes_per_token(spec.decoder, item) * config.block_size
    image = -(-spec.cross.max_tokens // config.block_size) * block
    if config.encoder_memory is None:
        return max(image, min(MEMORY_IMAGES * image, int(free * MEMORY_SHARE)) // block * block)
    if config.encoder_memory < image:
        raise ConfigError(
            f"--encoder-memory {config.encoder_memory:,} bytes do not hold the largest image, which takes {image:,}"
        )
    return config.encoder_memory // block * block


def visual_token_bytes(spec: ModelSpec, item: int) -> int:
    levels = len(spec.vision.taps) if spec.vision is not None and spec.fusion == "levels" else 0
    return spec.decoder.width * (1 + levels) * item


def kv_bytes_per_token(spec: DecoderSpec, item: int) -> int:
    return 2 * spec.own_layers * spec.kv_heads * spec.head_dim * item


def cross_kv_bytes_per_token(spec: DecoderSpec, item: int) -> int:
    """Of a visual token outside of the prompt: the layers that attend to it."""
    return 2 * len(spec.replaced) * spec.kv_heads * spec.head_dim * item
