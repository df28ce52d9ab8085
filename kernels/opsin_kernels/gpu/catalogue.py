"""Every launch that models of the supported families make, as it is compiled: what docs/kernels.md lists."""

from __future__ import annotations

from collections.abc import Iterator

from opsin_kernels.activations import ACTIVATIONS, Activation
from opsin_kernels.gpu import activations, attention, bitmask, layer_norm, norms, penalties, rotary, sampling
from opsin_kernels.gpu.compiled import Launch

# heads, key heads, head size, and whose decoder that is
DECODERS = {
    "Qwen2-VL-2B": (12, 2, 128),
    "Qwen2-VL-7B": (28, 4, 128),
    "Llama-3.2-11B": (32, 8, 128),
    "SmolVLM-256M": (9, 3, 64),
}
TOWERS = {"Qwen2-VL tower": (16, 16, 80), "CLIP-L tower": (16, 16, 64), "SigLIP tower": (16, 16, 72)}
PAGE = 16
FIRST = ("attention decode Qwen2-VL-7B", "attention decode split Qwen2-VL-7B", "attention prefill Qwen2-VL-7B",
         "attention packed Qwen2-VL tower")  # fmt: skip


def launches() -> Iterator[Launch]:
    for name, sizes in DECODERS.items():
        yield attention_launch(f"attention decode {name}", *sizes, page=PAGE, longest_query=1, splits=1)
        yield attention_launch(f"attention decode split {name}", *sizes, page=PAGE, longest_query=1, splits=8)
        yield attention_launch(f"attention prefill {name}", *sizes, page=PAGE, longest_query=1024, splits=1)
    yield attention_launch(
        "attention memory Llama-3.2-11B", 32, 8, 128, page=1, longest_query=1, splits=8, causal=False
    )
    eight = DECODERS["Qwen2-VL-7B"]
    yield attention_launch(
        "attention decode of int8 Qwen2-VL-7B", *eight, page=PAGE, longest_query=1, splits=8, eight_bit=True
    )
    for name, sizes in TOWERS.items():
        yield attention_launch(f"attention packed {name}", *sizes, page=0, longest_query=4096, splits=1, causal=False)
    yield attention_launch(
        "attention cores Llama-3.2 tower", 16, 16, 80, page=0, longest_query=4096, splits=1, causal=False, ranged=True
    )

    yield _merge("merge of parts 128", 128)
    for width in (1536, 3584, 4096):
        yield _norm(f"add and rms_norm {width}", width)
        yield _norm_backward(f"add and rms_norm backward {width}", width)
    for width in (1024, 1152, 1280):
        yield _layer_norm(f"add and layer_norm {width}", width)
    for activation in ACTIVATIONS:
        yield _activation(f"{activation} 4304", 4304, activation, gates=False)
        yield _activation(f"{activation} backward 4304", 4304, activation, gates=False, backward=True)
    for width in (8960, 18944, 14336):
        yield _activation(f"silu gated {width}", width, "silu")
        yield _activation(f"silu gated backward {width}", width, "silu", backward=True)
    yield _draw("draw a token")
    yield _penalties("penalties")
    yield _bitmask("bitmask")
    for name, (heads, kv_heads, size) in DECODERS.items():
        yield _rotary(f"rotate and store {name}", heads, kv_heads, size)


def representative() -> list[Launch]:
    return [launch for launch in launches() if launch.name in FIRST]


def attention_launch(
    name: str,
    heads: int,
    kv_heads: int,
    size: int,
    *,
    page: int,
    longest_query: int,
    splits: int,
    causal: bool = True,
    shape: attention.Shape | None = None,
    eight_bit: bool = False,
    ranged: bool = False,
) -> Launch:
    bits = 8 if eight_bit else 16
    shape = shape or attention.shape_for(heads, kv_heads, size, page, longest_query, bits=bits)
    low, high = attention.halves(size)
    whole = "*fp32" if splits > 1 else "*bf16"
    types = {
        "q_ptr": "*bf16",
        **dict.fromkeys(("k_ptr", "v_ptr"), "*i8" if eight_bit else "*bf16"),
        **dict.fromkeys(("k_scale_ptr", "v_scale_ptr"), "*fp32"),
        "out_ptr": whole,
        "norm_ptr": whole,
        **dict.fromkeys(("table_ptr", "starts_ptr", "lengths_ptr", "ranges_ptr"), "*i32"),
        **dict.fromkeys(("sequences", "rows", "q_stride", "kv_stride", "table_stride", "scale_stride"), "i32"),
        "scale": "fp32",
        "softcap": "fp32",
    }
    constants = {
        "HEADS": heads, "KV_HEADS": kv_heads, "SIZE": size, "LOW": low, "HIGH": high, "PAGE": page,
        "BLOCK_M": shape.block_m, "TILE": shape.tile, "SPLIT": splits > 1, "WINDOW": 0, "CAUSAL": causal,
        "CAPPED": False, "RANGED": ranged, "SCALED": eight_bit,
    }  # fmt: skip
    pointers = tuple(n for n in types if n.endswith("_ptr") and n not in attention.NUMBERS)
    return Launch(
        name,
        attention.attend,
        types,
        constants,
        (*pointers, "q_stride", "kv_stride"),
        shape.warps,
        shape.stages,
        matrix=True,
    )


def _merge(name: str, size: int) -> Launch:
    types = {"parts_ptr": "*fp32", "norm_ptr": "*fp32", "out_ptr": "*bf16", "rows": "i32", "parts": "i32"}
    constants = {"SIZE": size, "PADDED": 1 << (size - 1).bit_length(), "MOST": attention.MAX_SPLITS}
    return Launch(name, attention.merge, types, constants, ("parts_ptr", "norm_ptr", "out_ptr"), 4)


def _norm(name: str, width: int) -> Launch:
    pointers = ("x_ptr", "delta_ptr", "sum_ptr", "weight_ptr", "out_ptr")
    types = {**dict.fromkeys(pointers, "*bf16"), "floor_ptr": "*fp32", "stride": "i32"}
    constants = {
        "SIZE": width,
        "PADDED": 1 << (width - 1).bit_length(),
        "ROUNDED": True,
        "ADDED": True,
        "ONE_PLUS": False,
    }
    aligned = (*pointers, "floor_ptr", "stride")
    return Launch(name, norms.rms_norm_rows, types, constants, aligned, 8 if width > 2048 else 4)


def _activation(name: str, width: int, activation: Activation, gates: bool = True, backward: bool = False) -> Launch:
    pointers = ("x_ptr", "grad_ptr", "out_ptr") if backward else ("x_ptr", "out_ptr")
    kernel = activations.activate_backward if backward else activations.activate
    types = {**dict.fromkeys(pointers, "*bf16"), "count": "i32"}
    constants = {"SIZE": width, "KIND": activations.KINDS[activation], "STEP": activations.BLOCK, "GATED": gates}
    return Launch(name, kernel, types, constants, (*pointers, "count"), 4)


def _layer_norm(name: str, width: int) -> Launch:
    pointers = ("x_ptr", "delta_ptr", "sum_ptr", "weight_ptr", "bias_ptr", "out_ptr")
    types = {**dict.fromkeys(pointers, "*bf16"), "stride": "i32", "eps": "fp32"}
    constants = {"SIZE": width, "PADDED": 1 << (width - 1).bit_length(), "ADDED": True}
    return Launch(name, layer_norm.layer_norm_rows, types, constants, (*pointers, "stride"), 4)


def _rotary(name: str, heads: int, kv_heads: int, size: int) -> Launch:
    pointers = ("qkv_ptr", "cos_ptr", "sin_ptr", "pool_ptr")
    types = {**dict.fromkeys(pointers, "*bf16"), "slots_ptr": "*i64", "row_stride": "i32"}
    constants = {"HEADS": heads, "KV_HEADS": kv_heads, "SIZE": size, "PADDED": 1 << (size - 1).bit_length()}
    constants["STORED"] = True
    return Launch(name, rotary.turn_and_store, types, constants, (*pointers, "row_stride"), 1)


def _norm_backward(name: str, width: int) -> Launch:
    pointers = ("x_ptr", "grad_ptr", "straight_ptr", "weight_ptr", "x_grad_ptr")
    sums = ("floor_ptr", "weight_grad_ptr")
    types = {**dict.fromkeys(pointers, "*bf16"), **dict.fromkeys(sums, "*fp32"), "stride": "i32", "rows": "i32"}
    constants = {
        "SIZE": width,
        "PADDED": 1 << (width - 1).bit_length(),
        "ADDED": True,
        "WEIGHTED": True,
        "ONE_PLUS": False,
    }
    return Launch(
        name, norms.rms_norm_rows_backward, types, constants, (*pointers, *sums, "stride"), 8 if width > 2048 else 4
    )


def _draw(name: str) -> Launch:
    pointers = {"logits_ptr": "*bf16", "settings_ptr": "*fp64", "short_ptr": "*fp32", "places_ptr": "*i32"}
    types = {**pointers, "out_ptr": "*i64", "stride": "i32", "size": "i32"}
    constants = {"STEP": sampling.STEP, "TOP": sampling.ONE + 1, "SHORT": sampling.SHORT, "FAINT": sampling.FAINT}
    return Launch(name, sampling.draw_rows, types, constants, (*pointers, "out_ptr", "stride"), 8)


def _penalties(name: str) -> Launch:
    types = {"logits_ptr": "*bf16", "where_ptr": "*i64", "what_ptr": "*fp32", "stride": "i32", "count": "i32"}
    aligned = ("logits_ptr", "where_ptr", "what_ptr")
    return Launch(name, penalties.penalize_places, types, {"STEP": penalties.BLOCK}, aligned, 4)


def _bitmask(name: str) -> Launch:
    types = {"logits_ptr": "*bf16", "mask_ptr": "*i32", "stride": "i32", "mask_stride": "i32", "size": "i32"}
    constants = {"STEP": bitmask.BLOCK}
    return Launch(name, bitmask.forbid_tokens, types, constants, ("logits_ptr", "mask_ptr", "stride"), 8)
