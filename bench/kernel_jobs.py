"""What bench/kernels.py measures: every operation at sizes of published models, beside what torch and others offer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from adapter_jobs import adapters
from cross_entropy_jobs import cross_entropy
from device import Device
from kernel_job import Call, Job
from quantized_jobs import gate_codes, norm_codes, quantized, w8a8
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from opsin_kernels import activations, attention, bitmask, cross_attention, kv_rows, layer_norm, penalties, rotary
from opsin_kernels import rms_norm as norms
from opsin_kernels.layout import Layout, Segments
from opsin_kernels.sampling import SamplingRow, sample_ref

PAGE = 16
DECODERS = {"Qwen2-VL-2B": (12, 2, 128), "Qwen2-VL-7B": (28, 4, 128), "Llama-3.2-11B": (32, 8, 128)}
QKV, GATE_UP, DOWN = (3584, (3584, 512, 512)), (3584, (18944, 18944)), (18944, (3584,))  # inputs, segments


def decode(device: Device, model: str, heads: int, kv_heads: int, size: int, batch: int, context: int) -> Job:
    pages = -(-context // PAGE)

    def make() -> tuple:
        pool = device.random(batch * pages, PAGE, 2 * kv_heads, size)
        table = torch.randperm(batch * pages, device=device.device).view(batch, pages)
        layout = Layout([1] * batch, [context] * batch, table)
        _ = layout.launches  # (made once a step, not once a layer)
        return device.random(batch, heads, size), pool, layout

    def dense(q: Tensor, pool: Tensor, layout: Layout) -> Tensor:
        """torch's own over keys that already lie in a row: what paging must not cost."""
        k, v = pool.view(batch, -1, 2 * kv_heads, size)[:, :context].transpose(1, 2).chunk(2, 1)
        grouped = q.view(batch, kv_heads, heads // kv_heads, size)
        return F.scaled_dot_product_attention(grouped, k, v).reshape(batch, -1)

    moved = batch * context * 2 * kv_heads * size * device.dtype.itemsize
    name = f"decode {model} batch {batch} context {context}"
    run, define, work = attention.paged_attention, attention.paged_attention_ref, 4.0 * batch * context * heads * size
    return Job(name, make, run, define, {"torch sdpa": dense}, moved, work)


def decode_8_bit(device: Device, kind: str, heads: int, kv_heads: int, size: int, batch: int, context: int) -> Job:
    pages = -(-context // PAGE)

    def make() -> tuple:
        pool = kv_rows.quantize(device.random(batch * pages, PAGE, 2 * kv_heads, size), kv_rows.KINDS[kind])
        table = torch.randperm(batch * pages, device=device.device).view(batch, pages)
        layout = Layout([1] * batch, [context] * batch, table)
        _ = layout.launches  # (made once a step, not once a layer)
        return device.random(batch, heads, size), pool, layout

    moved = batch * context * 2 * kv_heads * (size + kv_rows.SCALE_BYTES)
    name = f"decode of {kind} {heads}+{kv_heads} heads batch {batch} context {context}"
    return Job(name, make, attention.paged_attention, attention.paged_attention_ref, {}, moved)


def prefill(device: Device, heads: int, kv_heads: int, size: int, queries: int, context: int) -> Job:
    pages = -(-context // PAGE)

    def make() -> tuple:
        pool = device.random(pages, PAGE, 2 * kv_heads, size)
        layout = Layout([queries], [context], torch.randperm(pages, device=device.device)[None])
        _ = layout.launches
        return device.random(queries, heads, size), pool, layout

    def dense(q: Tensor, pool: Tensor, layout: Layout) -> Tensor:
        k, v = pool.view(-1, 2 * kv_heads, size)[:context].transpose(0, 1)[None].chunk(2, 1)
        k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
        mask = causal_lower_right(queries, context)
        return F.scaled_dot_product_attention(q.transpose(0, 1)[None], k, v, attn_mask=mask)[0].transpose(0, 1)

    moved = (2 * queries * heads + 2 * context * kv_heads) * size * device.dtype.itemsize
    work = 4.0 * heads * size * queries * (context - (queries - 1) / 2)
    name = f"prefill {heads}+{kv_heads} heads {queries} rows of {context}"
    return Job(name, make, attention.paged_attention, attention.paged_attention_ref, {"torch sdpa": dense}, moved, work)


def crossing(device: Device, heads: int, kv_heads: int, size: int, batch: int, visual: int) -> Job:
    def make() -> tuple:
        slots = torch.randperm(batch * visual, device=device.device).view(batch, visual)
        runs = cross_attention.CrossRuns([cross_attention.CrossRun(1, line) for line in slots])
        _ = runs.bounds
        return device.random(batch, heads, size), device.random(batch * visual, 2 * kv_heads, size), runs

    def dense(q: Tensor, memory: Tensor, runs: cross_attention.CrossRuns) -> Tensor:
        k, v = memory.view(batch, visual, 2 * kv_heads, size).transpose(1, 2).chunk(2, 1)
        return F.scaled_dot_product_attention(q.view(batch, kv_heads, -1, size), k, v).reshape(batch, -1)

    moved = batch * visual * 2 * kv_heads * size * device.dtype.itemsize
    run, define = cross_attention.cross_attention, cross_attention.cross_attention_ref
    name = f"cross-attention {heads}+{kv_heads} heads batch {batch} of {visual} visual tokens"
    return Job(name, make, run, define, {"torch sdpa": dense}, moved, 4.0 * batch * visual * heads * size)


def packed(device: Device, tower: str, heads: int, size: int, lengths: list[int]) -> Job:
    segments = Segments(lengths)
    starts, whole = segments.bounds(device.device)[0].starts, len(set(lengths)) == 1

    def make() -> tuple:
        return tuple(device.random(sum(lengths), heads, size) for _ in range(3))

    def padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same kernel over heads filled up to a power of two, as most kernels take them."""
        wide = [F.pad(x, (0, (1 << (size - 1).bit_length()) - size)) for x in (q, k, v)]
        bounds, _ = segments.bounds(q.device)
        return gpu.attention(*wide, bounds, 0, causal=False, scale=size**-0.5)[..., :size]

    def library(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.packed_attention_ref(q, k, v, segments, causal=False)

    def varlen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        found: Tensor = varlen_attn(q, k, v, starts, starts, max(lengths), max(lengths))
        return found

    from opsin_kernels.gpu import attention as gpu

    others: dict[str, Call] = {"torch sdpa": library} if whole else {}
    if size & (size - 1):
        others["padded heads"] = padded
    if device.cuda and _there("torch.nn.attention.varlen"):
        others["torch varlen_attn"] = varlen
    moved = 4 * sum(lengths) * heads * size * device.dtype.itemsize
    work = 4.0 * sum(n**2 for n in lengths) * heads * size
    name = f"vision {tower} {sum(lengths)} patches" + (f" in {len(lengths)}" if len(lengths) > 1 else "")
    run = partial(attention.packed_attention, segments=segments, causal=False)
    return Job(name, make, lambda q, k, v: run(q, k, v), library, others, moved, work)


def norm(device: Device, rows: int, width: int) -> Job:
    floor = torch.tensor(1e-6, device=device.device)

    def make() -> tuple:
        return device.random(rows, width), device.random(width), floor

    def library(x: Tensor, weight: Tensor, floor: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, 1e-6)

    others: dict[str, Call] = {"torch": library}
    if device.cuda and _there("liger_kernel"):
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        others["liger"] = lambda x, weight, floor: LigerRMSNormFunction.apply(x, weight, 1e-6, 0.0, "llama", False)
    moved = 2 * rows * width * device.dtype.itemsize
    return Job(f"rms_norm {rows} x {width}", make, norms.rms_norm, norms.rms_norm_ref, others, moved)


def norm_of_sum(device: Device, rows: int, width: int) -> Job:
    floor = torch.tensor(1e-6, device=device.device)

    def make() -> tuple:
        return device.random(rows, width), device.random(rows, width), device.random(width), floor

    def library(x: Tensor, delta: Tensor, weight: Tensor, floor: Tensor) -> Tensor:
        return F.rms_norm(x + delta, weight.shape, weight, 1e-6)

    def define(x: Tensor, delta: Tensor, weight: Tensor, floor: Tensor) -> Tensor:
        return norms.rms_norm_ref(x + delta, weight, floor)

    def run(x: Tensor, delta: Tensor, weight: Tensor, floor: Tensor) -> Tensor:
        return norms.add_rms_norm(x, delta, weight, floor)[1]

    moved = 4 * rows * width * device.dtype.itemsize
    return Job(f"add and rms_norm {rows} x {width}", make, run, define, {"torch, two kernels": library}, moved)


def tower_norm(device: Device, rows: int, width: int) -> Job:
    def make() -> tuple:
        return device.random(rows, width), device.random(width), device.random(width), 1e-6

    moved, run, define = 2 * rows * width * device.dtype.itemsize, layer_norm.layer_norm, layer_norm.layer_norm_ref
    return Job(f"layer_norm {rows} x {width}", make, run, define, {"torch": define}, moved)


def gate(device: Device, rows: int, width: int) -> Job:
    run, define = (partial(f, activation="silu") for f in (activations.gated, activations.gated_ref))
    others: dict[str, Call] = {"torch": define}
    if device.cuda and _there("liger_kernel"):
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        others["liger"] = lambda x: LigerSiLUMulFunction.apply(*(h.contiguous() for h in x.chunk(2, -1)))
    moved = 3 * rows * width * device.dtype.itemsize
    return Job(f"silu gated {rows} x {width}", lambda: (device.random(rows, 2 * width),), run, define, others, moved)


def turn(device: Device, rows: int, heads: int, kv_heads: int, size: int) -> Job:
    def make() -> tuple:
        tables = rotary.angles_to_tables(torch.rand(rows, size // 2, device=device.device), device.dtype)
        pool = device.random(rows // PAGE + 1, PAGE, 2 * kv_heads, size)
        slots = torch.randperm(pool.shape[0] * PAGE, device=device.device)[:rows]
        return device.random(rows, heads + 2 * kv_heads, size), heads, *tables, pool, slots

    moved = 2 * rows * (heads + 2 * kv_heads) * size * device.dtype.itemsize
    name = f"rotate and store {rows} rows {heads}+{kv_heads} heads"
    run, define = rotary.rotate_and_store, rotary.rotate_and_store_ref
    return Job(name, make, run, define, {"torch": define}, moved, written=(4,))


def norm_trained(device: Device, rows: int, width: int) -> Job:
    """The norm and its gradients, as a training step needs them."""
    floor = torch.tensor(1e-6, device=device.device)

    def make() -> tuple:
        x, weight = device.random(rows, width).requires_grad_(), device.random(width).requires_grad_()
        return x, weight, device.random(rows, width)

    def both(norm: Call) -> Call:
        return lambda x, weight, grad: torch.autograd.grad(norm(x, weight, floor), (x, weight), grad)[0]

    library = both(lambda x, weight, floor: F.rms_norm(x, weight.shape, weight, 1e-6))
    run, define = both(norms.rms_norm), both(norms.rms_norm_ref)
    name, moved = f"rms_norm and gradients {rows} x {width}", 5 * rows * width * device.dtype.itemsize
    return Job(name, make, run, define, {"torch": library}, moved, captured=False)


def gate_trained(device: Device, rows: int, width: int) -> Job:
    def make() -> tuple:
        return device.random(rows, 2 * width).requires_grad_(), device.random(rows, width)

    def both(gate: Call) -> Call:
        return lambda x, grad: torch.autograd.grad(gate(x, "silu"), x, grad)[0]

    run, define = both(activations.gated), both(activations.gated_ref)
    name, moved = f"silu gated and gradient {rows} x {width}", 8 * rows * width * device.dtype.itemsize
    return Job(name, make, run, define, {"torch": define}, moved, captured=False)


def drawing(device: Device, rows: int, vocabulary: int) -> Job:
    from opsin_kernels.gpu import sampling as gpu

    wanted = [SamplingRow(0.7, 50 if i % 2 else 0, 0.9, 0.0, (i + 0.5) / rows) for i in range(rows)]
    numbers = [(r.temperature, r.top_k, r.top_p, r.min_p, r.uniform) for r in wanted]
    settings = torch.tensor(numbers, dtype=torch.float64, device=device.device)

    def make() -> tuple:
        return (8 * device.random(rows, vocabulary),)  # few tokens have the mass, so that rounding moves no draw

    def define(logits: Tensor) -> Tensor:
        return sample_ref(logits, wanted)

    moved, name = rows * vocabulary * device.dtype.itemsize, f"draw {rows} of {vocabulary:,}"
    run, others = (lambda logits: gpu.draw(logits, settings)), {"torch, sorted": define}
    return Job(name, make, run, define, others, moved, uncaptured=frozenset(others))


def penalizing(device: Device, rows: int, vocabulary: int, seen: int) -> Job:
    from opsin_kernels.gpu import penalties as gpu

    where = torch.stack(
        [
            torch.arange(rows).repeat_interleave(seen),
            torch.cat([torch.randperm(vocabulary)[:seen] for _ in range(rows)]),
        ]
    ).to(device.device)
    what = torch.tensor([[1.3], [0.5]]).repeat(1, rows * seen).to(device.device)

    def apply(penalize: Callable[[Tensor, Tensor, Tensor], object]) -> Call:
        def run(logits: Tensor) -> Tensor:
            penalize(logits, where, what)
            return logits

        return run

    run, define = apply(gpu.penalize_), apply(penalties.penalize_ref_)
    moved, name = rows * seen * (2 * device.dtype.itemsize + 24), f"penalties of {seen} tokens in {rows} rows"
    return Job(name, lambda: (device.random(rows, vocabulary),), run, define, {"torch": define}, moved)


def forbidding(device: Device, rows: int, vocabulary: int) -> Job:
    words = -(-vocabulary // 32)

    def make() -> tuple:
        mask = torch.randint(-(2**31), 2**31 - 1, (rows, words), dtype=torch.int32, device=device.device)
        return device.random(rows, vocabulary).clamp(min=-9), mask

    def apply(forbid: Callable[[Tensor, Tensor], object]) -> Call:
        def run(logits: Tensor, mask: Tensor) -> Tensor:
            forbid(logits, mask)
            return logits.clamp(min=-10)  # infinite differences say nothing

        return run

    run, define = apply(bitmask.forbid_), apply(bitmask.forbid_ref_)
    moved = rows * (words * 4 + 3.5 * vocabulary * device.dtype.itemsize)  # half is written; then the clamp
    return Job(f"bitmask {rows} x {vocabulary:,}", make, run, define, {"torch": define}, moved)


def jobs(device: Device) -> Iterator[Job]:
    """Those that tell most first, since there may be no time for all."""
    if device.tiny:
        yield from _tiny(device)
        return
    for model, sizes in DECODERS.items():
        yield decode(device, model, *sizes, 32, 2048)
    yield packed(device, "Qwen2-VL tower", 16, 80, [5476])
    yield prefill(device, *DECODERS["Qwen2-VL-7B"], 2048, 2048)
    yield crossing(device, *DECODERS["Llama-3.2-11B"], 8, 6404)
    for rows in (32, 2048):
        yield norm_of_sum(device, rows, 3584)
        yield gate(device, rows, 18944)
        yield turn(device, rows, 28, 4, 128)
    for distinct in (1, 32):
        yield adapters(device, "Qwen2-VL-7B qkv", *QKV, 16, 32, distinct)
    yield drawing(device, 32, 151_936)
    yield tower_norm(device, 5476, 1280)
    for kind in kv_rows.KINDS:
        yield decode_8_bit(device, kind, *DECODERS["Qwen2-VL-7B"], 32, 2048)
    for form in ("int4", "int8", "fp8"):
        yield quantized(device, form, "down", 1, 18944, 3584)
    for form in ("int8", "fp8"):
        yield w8a8(device, form, "gate and up", 2048, 3584, 37888)
    yield from _rest(device)


def _rest(device: Device) -> Iterator[Job]:
    for model, sizes in DECODERS.items():
        for batch, context in ((1, 1024), (1, 8192), (8, 2048), (129, 1024), (256, 1024)):
            yield decode(device, model, *sizes, batch, context)
    yield prefill(device, *DECODERS["Qwen2-VL-7B"], 512, 8192)
    yield crossing(device, *DECODERS["Llama-3.2-11B"], 1, 6404)
    yield packed(device, "Qwen2-VL tower", 16, 80, [1024])
    yield packed(device, "Qwen2.5-VL tower", 16, 80, [64] * 84)
    yield packed(device, "CLIP-L tower", 16, 64, [577])
    yield adapters(device, "Qwen2-VL-7B gate and up", *GATE_UP, 16, 32, 32)
    yield adapters(device, "Qwen2-VL-7B down", *DOWN, 16, 32, 32)
    yield adapters(device, "Qwen2-VL-7B qkv", *QKV, 64, 32, 8)
    yield adapters(device, "Qwen2-VL-7B qkv", *QKV, 16, 1, 1)
    for distinct in (1, 4, 16):  # where one by one becomes the better way
        yield adapters(device, "Qwen2-VL-7B qkv", *QKV, 16, 2048, distinct)
    for rows in (16, 32, 64, 128, 2048):
        yield quantized(device, "int4", "gate and up", rows, 3584, 37888)
    for form in ("int8", "fp8"):
        yield quantized(device, form, "gate and up", 32, 3584, 37888)
        for rows in (1, 32, 128):
            yield w8a8(device, form, "gate and up", rows, 3584, 37888)
    yield norm_codes(device, 2048, 3584)
    yield gate_codes(device, 2048, 18944)
    for rows in (1, 32, 2048):
        yield norm(device, rows, 3584)
    yield norm_of_sum(device, 1, 3584)
    yield gate(device, 1, 18944)
    yield turn(device, 1, 28, 4, 128)
    yield norm_trained(device, 2048, 3584)
    yield gate_trained(device, 2048, 18944)
    for rows in (64, 256):
        yield cross_entropy(device, rows, 3584, 151_936)
    for rows in (1, 256):
        yield drawing(device, rows, 151_936)
    yield penalizing(device, 32, 151_936, 1000)
    yield forbidding(device, 32, 151_936)


def _tiny(device: Device) -> Iterator[Job]:
    yield decode(device, "tiny", 6, 3, 32, 2, 40)
    for kind in kv_rows.KINDS:
        yield decode_8_bit(device, kind, 6, 3, 32, 2, 40)
    yield prefill(device, 4, 2, 32, 20, 40)
    yield crossing(device, 4, 2, 32, 2, 20)
    yield packed(device, "tiny", 2, 80, [40])
    yield packed(device, "tiny", 2, 80, [20, 5])
    yield adapters(device, "tiny", 48, (32, 16), 4, 6, 3)
    for form in ("int4", "int8", "fp8"):
        yield quantized(device, form, "tiny", 5, 96, 40)
    yield quantized(device, "int8", "tiny", 130, 96, 40)
    for form in ("int8", "fp8"):
        yield w8a8(device, form, "tiny", 5, 96, 40)
    yield norm_codes(device, 5, 48)
    yield gate_codes(device, 5, 48)
    yield norm(device, 5, 48)
    yield norm_of_sum(device, 5, 48)
    yield tower_norm(device, 5, 48)
    yield gate(device, 5, 48)
    yield turn(device, 5, 4, 2, 16)
    yield norm_trained(device, 5, 48)
    yield gate_trained(device, 5, 48)
    yield cross_entropy(device, 5, 48, 300)
    yield drawing(device, 2, 300)
    yield penalizing(device, 2, 300, 10)
    yield forbidding(device, 2, 300)


def _there(module: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
