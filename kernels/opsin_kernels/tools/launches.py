"""Every launch that models of the supported families make, at their sizes: what docs/kernels.md lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from opsin_kernels.activations import ACTIVATIONS, Activation
from opsin_kernels.cpu.linear import PARTS, Form
from opsin_kernels.gpu import activations, attention, bitmask, layer_norm, lora, penalties, rotary, row_codes, sampling
from opsin_kernels.gpu import dequantize as floats
from opsin_kernels.gpu import linear_cross_entropy as losses
from opsin_kernels.gpu import quantized_linear as quantized
from opsin_kernels.gpu import rms_norm as norms
from opsin_kernels.gpu import w8a8_linear as w8a8
from opsin_kernels.gpu.attention_shapes import Shape
from opsin_kernels.gpu.codes import E4M3, FORMS, Weight
from opsin_kernels.gpu.lora_shapes import Shape as LoraShape
from opsin_kernels.gpu.lora_shapes import shapes_of
from opsin_kernels.gpu.quantized_shapes import BUCKETS, shape_for
from opsin_kernels.gpu.w8a8_shapes import BUCKETS as W8A8_ROWS
from opsin_kernels.gpu.w8a8_shapes import shape_for as w8a8_shape_for
from opsin_kernels.kv_rows import LARGEST
from opsin_kernels.layout import Bounds
from opsin_kernels.lora import SlotFactors
from opsin_kernels.row_codes import RowCodes, RowForm
from opsin_kernels.slot_rows import FEW, FEW_BLOCK, SlotRows
from opsin_kernels.tools.compile_facts import CHIPS, Launch

# heads, key heads, head size, and whose decoder that is
DECODERS = {
    "Qwen2-VL-2B": (12, 2, 128),
    "Qwen2-VL-7B": (28, 4, 128),
    "Llama-3.2-11B": (32, 8, 128),
    "SmolVLM-256M": (9, 3, 64),
}
TOWERS = {"Qwen2-VL tower": (16, 16, 80), "CLIP-L tower": (16, 16, 64), "SigLIP tower": (16, 16, 72)}
# inputs and segments of linears with adapters: of SmolVLM-256M's q, k and v, of Qwen2-VL-7B's, and of its down
LORA = ((576, (576, 192, 192)), (3584, (3584, 512, 512)), (18944, (3584,)))
# of quantized weights: inputs of a group (0: whole rows), and whether there is an offset
CODES: tuple[tuple[Form, int, bool], ...] = (
    ("int4", 128, True), ("int4", 32, True), ("int8", 0, False), ("int8", 128, True), ("int8", 16, False),
    ("fp8", 0, False), ("fp8", 128, False), ("table4", 64, False),
)  # fmt: skip
WIDTH = 3584  # of a quantized weight, both ways
SLOTS = 32
PAGE, VOCABULARY, ROWS = 16, 151_936, 32
ODD_VOCABULARY = 49_155  # of Granite: rows that do not begin at multiples of 16 bytes
FIRST = ("attention decode Qwen2-VL-7B", "attention decode split Qwen2-VL-7B", "attention prefill Qwen2-VL-7B",
         "attention packed Qwen2-VL tower", "lora shrink rank 16, tiles of 16",
         "lora expand rank 16, tiles of 16, parts 8", "int4 by 128, 16 rows", "int8 by row, 128 rows",
         "fp8 by row, 16 rows", "w8a8 int8 by row, 16 rows", "w8a8 fp8 by 128, 128 rows",
         f"cross-entropy and gradient {VOCABULARY}")  # fmt: skip


def launches() -> Iterator[Launch]:
    yield from _attention()
    yield from _lora()
    yield from _quantized()
    yield from _w8a8()
    yield from _norms()
    for activation in ACTIVATIONS:
        yield Launch(f"{activation} 4304", "activate", partial(_activate, activation, 4304, False))
        yield Launch(f"{activation} backward 4304", "activate_backward", partial(_activate, activation, 4304, False))
    for width in (8960, 18944, 14336):
        yield Launch(f"silu gated {width}", "activate", partial(_activate, "silu", width, True))
        yield Launch(f"silu gated backward {width}", "activate_backward", partial(_activate, "silu", width, True))
    for vocabulary in (VOCABULARY, ODD_VOCABULARY):
        words = f"cross-entropy and gradient {vocabulary}"
        yield Launch(words, "cross_entropy_rows", partial(cross_entropy, vocabulary, True))
    yield Launch(f"cross-entropy {VOCABULARY}", "cross_entropy_rows", partial(cross_entropy, VOCABULARY, False))
    yield Launch("draw a token", "draw_rows", _draw)
    yield Launch("penalties", "penalize_places", _penalize)
    yield Launch("bitmask", "forbid_tokens", _forbid)
    for name, sizes in DECODERS.items():
        yield Launch(f"rotate and store {name}", "turn_and_store", partial(_store, *sizes))
    for kind in LARGEST:
        words = f"rotate and store {FORMS[kind]} Qwen2-VL-7B"
        yield Launch(words, "turn_and_store", partial(_store, *DECODERS["Qwen2-VL-7B"], kind))
    for name, sizes in TOWERS.items():
        yield Launch(f"rotate {name}", "turn_and_store", partial(_rotate, *sizes))


def representative() -> list[Launch]:
    return [launch for launch in launches() if launch.name in FIRST]


def _attention() -> Iterator[Launch]:
    def launch(name: str, *sizes: int, **options: object) -> Launch:
        run = partial(attend, *sizes, **options)  # type: ignore[arg-type]
        return Launch(f"attention {name}", "attend", run, matrix=True, background=True)

    for name, sizes in DECODERS.items():
        yield launch(f"decode {name}", *sizes, page=PAGE, queries=1)
        yield launch(f"decode split {name}", *sizes, page=PAGE, queries=1, splits=8)
        yield launch(f"prefill {name}", *sizes, page=PAGE, queries=1024)
        yield launch(f"prefill split {name}", *sizes, page=PAGE, queries=1024, splits=8)
    big = DECODERS["Llama-3.2-11B"]
    yield launch("cross Llama-3.2-11B", *big, page=1, queries=1, splits=8, causal=False)
    yield launch("cross prefill Llama-3.2-11B", *big, page=1, queries=1024, causal=False)
    for kind, name in ((torch.int8, "int8"), (torch.float8_e4m3fn, "fp8")):
        for model in ("Qwen2-VL-2B", "Qwen2-VL-7B"):
            yield launch(f"decode of {name} {model}", *DECODERS[model], page=PAGE, queries=1, splits=8, kind=kind)
        yield launch(f"prefill of {name} Qwen2-VL-7B", *DECODERS["Qwen2-VL-7B"], page=PAGE, queries=1024, kind=kind)
    yield launch("prefill, window and softcap, 128", *big, page=PAGE, queries=1024, window=4096, softcap=50.0)
    yield launch("prefill, spans, 256", 8, 4, 256, page=PAGE, queries=1024, ranged=True)
    for name, sizes in TOWERS.items():
        yield launch(f"packed {name}", *sizes, page=0, queries=4096, causal=False)
    yield launch("cores Llama-3.2 tower", 16, 16, 80, page=0, queries=4096, causal=False, ranged=True)
    merged = partial(attend, *big, page=PAGE, queries=1, splits=8)
    yield Launch("merge of parts 128", "merge", merged)


def attend(
    heads: int,
    kv_heads: int,
    size: int,
    *,
    page: int,
    queries: int,
    splits: int = 1,
    causal: bool = True,
    kind: torch.dtype = torch.bfloat16,
    ranged: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    shape: Shape | None = None,
) -> None:
    """One sequence; keys in pages of `page` rows, of kind, or 0: packed with the queries."""
    q = empty(queries, heads + 2 * kv_heads, size)
    kv = q[:, heads:] if page == 0 else empty(4096, 2 * kv_heads, size + (4 if kind in LARGEST else 0), dtype=kind)
    table = integers(1, 256) if page else None
    bounds = Bounds(integers(2), integers(1), table, queries, 4096)
    attention.attention(
        q[:, :heads], kv[:, :kv_heads], kv[:, kv_heads:], bounds, page, causal=causal, window=window, softcap=softcap,
        ranges=integers(queries, 2) if ranged else None, splits=splits, shape=shape,
    )  # fmt: skip


def _lora() -> Iterator[Launch]:
    """They differ by rank, tile and parts; a linear's sizes only decide on the parts."""
    for rank in (16, 64):
        few = [(*sizes, next(shapes_of(sizes[0], rank, 16))) for sizes in LORA]
        inputs, segments = LORA[-1]
        _, *more = shapes_of(inputs, rank, 16)
        for one in (few[0], (inputs, segments, more[0])):
            words = f"lora shrink rank {rank}, tiles of {one[2][1]}"
            yield Launch(words, "shrink", partial(add_lora, rank, *one), matrix=True, background=True)
        for one in (*few, (inputs, segments, more[0]), (inputs, segments, more[-1])):
            words = f"lora expand rank {rank}, tiles of {one[2][1]}, parts {one[2][0].parts}"
            yield Launch(words, "expand", partial(add_lora, rank, *one), matrix=True)


def add_lora(rank: int, inputs: int, segments: Sequence[int], tile: tuple[LoraShape, int]) -> None:
    """tile: the shape of a launch, and the rows of a tile, of which there are as many as go with them."""
    shape, block = tile
    factors = SlotFactors(
        a=empty(SLOTS, len(segments), rank, inputs),
        b=empty(SLOTS, rank, sum(segments)),
        ranks=integers(SLOTS, len(segments)),
        columns=[slice(0, n) for n in segments],
        tiles=integers(len(segments), 3),
    )
    count = FEW if block == FEW_BLOCK else 2048
    rows = SlotRows(empty(count, dtype=torch.int64), empty(SLOTS + 1, dtype=torch.int64))
    lora.add_lora_slots(empty(count, sum(segments)), empty(count, inputs), factors, rows, shape)


def _quantized() -> Iterator[Launch]:
    for form, group, offset in CODES:
        words = f"{form} by {group or 'row'}{' with offset' if offset and form == 'int8' else ''}"
        weight = _weight(form, group, offset)
        for rows in BUCKETS:
            product = partial(multiply, rows, weight)
            yield Launch(f"{words}, {rows} rows", "multiply", product, matrix=True, background=True)
        dequantize = partial(floats.dequantize, weight, slice(0, WIDTH), torch.bfloat16)
        yield Launch(f"{words}, as floats", "dequantize_rows", dequantize)
    yield Launch("parts of a quantized product", "add_parts", partial(multiply, 16, _weight("int8", 0, False)))


def multiply(rows: int, weight: Weight) -> None:
    shape = shape_for(weight, rows, 16)
    quantized.linear(empty(rows, WIDTH), weight, shape, parts=4)


def _weight(form: Form, group: int, offset: bool) -> Weight:
    groups = WIDTH // (group or WIDTH)
    kind = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}.get(form, torch.uint8)
    scales = [empty(WIDTH, groups, dtype=torch.float16 if group and form != "fp8" else torch.float32) for _ in range(2)]
    codes = empty(WIDTH, WIDTH // PARTS.get(form, 1), dtype=kind)
    table = empty(16, dtype=torch.float32) if form == "table4" else None
    return Weight(form, codes, scales[0], scales[1] if offset else None, table)


def _w8a8() -> Iterator[Launch]:
    for kind, name in FORMS.items():
        chips = [chip for chip in CHIPS if name != "fp8" or chip >= E4M3]
        for group in (0, 128):
            for rows in W8A8_ROWS:
                product = partial(multiply_codes, rows, kind, group, 4)
                words = f"w8a8 {name} by {group or 'row'}, {rows} rows"
                yield Launch(words, "multiply_codes", product, matrix=True, background=True, chips=chips)
        product = partial(multiply_codes, 16, kind, 0, 4)
        yield Launch(f"parts of a w8a8 product {name}", "finish_sums", product, chips=chips)
        form, gated = RowForm(kind, keep=True), partial(row_codes.gated_codes, empty(ROWS, 2 * 18944), "silu")
        yield Launch(f"rows to {name} {WIDTH}", "code_rows", partial(row_codes.quantize_rows, empty(ROWS, WIDTH), form))
        yield Launch(f"silu gated to {name} 18944", "code_rows", partial(gated, form))
        for width in (WIDTH, 8192):
            yield Launch(f"add and rms_norm to {name} {width}", "rms_norm_rows", partial(_norm_codes, width, form))


def multiply_codes(rows: int, kind: torch.dtype, group: int, parts: int) -> None:
    given = RowCodes(empty(rows, WIDTH, dtype=kind), empty(rows, 1, dtype=torch.float32), torch.bfloat16)
    scale = empty(WIDTH, WIDTH // (group or WIDTH), dtype=torch.float32)
    w8a8.linear(given, empty(WIDTH, WIDTH, dtype=kind), scale, w8a8_shape_for(rows, group), parts)


def _norm_codes(width: int, form: RowForm) -> None:
    x, delta = empty(ROWS, width), empty(ROWS, width)
    norms.norm_codes(x, delta, empty(width), empty(dtype=torch.float32), form)


def _norms() -> Iterator[Launch]:
    for width in (128, 3584):  # of a head, of a row
        yield Launch(f"rms_norm {width}", "rms_norm_rows", partial(_rms_norm, width))
    yield Launch("rms_norm, 1 + weight, 2304", "rms_norm_rows", partial(_rms_norm, 2304, True))
    for width in (1536, 3584, 4096):
        yield Launch(f"add and rms_norm {width}", "rms_norm_rows", partial(_add_rms_norm, width))
        yield Launch(f"add and rms_norm backward {width}", "rms_norm_rows_backward", partial(_add_rms_norm, width))
    yield Launch("layer_norm 1280", "layer_norm_rows", partial(_layer_norm, 1280, False))
    for width in (1024, 1152, 1280):
        yield Launch(f"add and layer_norm {width}", "layer_norm_rows", partial(_layer_norm, width, True))


def _rms_norm(width: int, one_plus: bool = False) -> None:
    norms.rms_norm(empty(ROWS, width), empty(width), empty(dtype=torch.float32), one_plus)


def _add_rms_norm(width: int) -> None:
    x, delta, weight = (t.requires_grad_() for t in (empty(ROWS, width), empty(ROWS, width), empty(width)))
    outputs = norms.add_rms_norm(x, delta, weight, empty(dtype=torch.float32))
    torch.autograd.backward(outputs, [empty(ROWS, width)] * 2)


def _layer_norm(width: int, added: bool) -> None:
    x, weight, bias = empty(ROWS, width), empty(width), empty(width)
    if added:
        layer_norm.add_layer_norm(x, empty(ROWS, width), weight, bias, 1e-6)
    else:
        layer_norm.layer_norm(x, weight, bias, 1e-6)


def _activate(activation: Activation, width: int, gates: bool) -> None:
    x = empty(ROWS, 2 * width if gates else width).requires_grad_()
    run = activations.gated if gates else activations.activated
    run(x, activation).backward(empty(ROWS, width))


def _store(heads: int, kv_heads: int, size: int, kind: torch.dtype = torch.bfloat16) -> None:
    qkv = empty(ROWS, heads + 2 * kv_heads, size)
    pool = empty(64, PAGE, 2 * kv_heads, size + (4 if kind in LARGEST else 0), dtype=kind)
    slots = empty(ROWS, dtype=torch.int64)
    rotary.rotate_and_store(qkv, heads, empty(ROWS, size), empty(ROWS, size), pool, slots)


def _rotate(heads: int, kv_heads: int, size: int) -> None:
    qkv = empty(ROWS, heads + 2 * kv_heads, size)
    rotary.rotate_(qkv[:, : heads + kv_heads], empty(ROWS, 1, size), empty(ROWS, 1, size))


def cross_entropy(vocabulary: int, wants_gradient: bool) -> None:
    x, weight = empty(ROWS, 3584), empty(vocabulary, 3584)
    losses.linear_cross_entropy(x, weight, empty(ROWS, dtype=torch.int64), wants_gradient)


def _draw() -> None:
    sampling.draw(empty(ROWS, VOCABULARY), empty(ROWS, 5, dtype=torch.float64))


def _penalize() -> None:
    where, what = empty(2, 100, dtype=torch.int64), empty(2, 100, dtype=torch.float32)
    penalties.penalize_(empty(ROWS, VOCABULARY), where, what)


def _forbid() -> None:
    bitmask.forbid_(empty(ROWS, VOCABULARY), integers(ROWS, VOCABULARY // 32))


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def integers(*shape: int) -> Tensor:
    return empty(*shape, dtype=torch.int32)
