"""Checkpoints of the compressed-tensors library itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from opsin_plugins.loading.open_model import open_model
from opsin_plugins.spec import SpecError
from support import oracle, packers
from support.quantized_checks import check, saved, tiny

TOKEN = QuantizationArgs(num_bits=8, type="int", strategy="token", dynamic=True, symmetric=True)
FLOAT_TOKEN = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True, symmetric=True)
FLOAT_STATIC = QuantizationArgs(num_bits=8, type="float", strategy="tensor", symmetric=True)


def limits(weight: Tensor, args: QuantizationArgs) -> tuple[Tensor, Tensor]:
    """Least and most of what shares a scale."""
    if args.strategy == "group":
        blocks = weight.unflatten(1, (-1, args.group_size))
        return blocks.amin(2), blocks.amax(2)
    if args.strategy == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if args.strategy == "block":
        high, wide = args.block_structure
        blocks = weight.unflatten(0, (-1, high)).unflatten(2, (-1, wide))
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    return weight.min().reshape(1), weight.max().reshape(1)


def compressed(folder: Path, **schemes: QuantizationScheme) -> LlamaForCausalLM:
    """Written to the folder; the model has then the weights that are meant."""
    model, meant = tiny(), {}
    config = QuantizationConfig(config_groups=schemes, ignore=["lm_head"])
    apply_quantization_config(model, config, show_progress=False)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not hasattr(module, "weight_scale"):
            continue
        args, weight = module.quantization_scheme.weights, module.weight.detach()
        scale, zero = calculate_qparams(*limits(weight, args), args)
        module.weight_scale.data.copy_(scale)
        if not args.symmetric:
            module.weight_zero_point.data.copy_(zero)
        if hasattr(module, "input_scale"):
            module.input_scale.data.fill_(0.01)
        given = None if args.symmetric else zero
        meant[name] = fake_quantize(weight, scale, given, args)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    plain = tiny()
    for name, weight in meant.items():
        plain.get_submodule(name).weight.data.copy_(weight)
    return plain


def weights(**how: Any) -> QuantizationArgs:
    return QuantizationArgs(**{"type": "int", "symmetric": True} | how)


@pytest.mark.parametrize(
    ("args", "inputs", "least"),
    [
        (weights(num_bits=4, strategy="group", group_size=64), None, 5),
        (weights(num_bits=4, strategy="group", group_size=128, symmetric=False), None, 5),
        (weights(num_bits=4, strategy="channel"), None, 5),
        (weights(num_bits=8, strategy="group", group_size=32), None, 3),
        (weights(num_bits=8, strategy="channel"), None, 3),
        (weights(num_bits=8, strategy="channel"), TOKEN, 3),
        (weights(num_bits=8, strategy="channel", symmetric=False), TOKEN, 3),
        (weights(num_bits=8, strategy="tensor"), None, 3),
        (weights(num_bits=8, type="float", strategy="tensor"), FLOAT_STATIC, 3),
        (weights(num_bits=8, type="float", strategy="channel"), FLOAT_TOKEN, 3),
        (weights(num_bits=8, type="float", strategy="block", block_structure=[128, 128]), FLOAT_TOKEN, 3),
    ],
    ids=lambda one: f"{one.type}{one.num_bits} {one.strategy}" if isinstance(one, QuantizationArgs) else "",
)
def test_a_scheme(tmp_path: Path, args: QuantizationArgs, inputs: QuantizationArgs | None, least: float) -> None:
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=inputs)
    check(compressed(tmp_path, group_0=scheme), tmp_path, least)


def test_activations_in_8_bits_are_those_of_the_library(tmp_path: Path) -> None:
    """A row's scale is found as the library finds it (of float8; it divides the range of int8 by 127.5)."""
    args = weights(num_bits=8, type="float", strategy="channel")
    compressed(tmp_path, group_0=QuantizationScheme(targets=["Linear"], weights=args, input_activations=FLOAT_TOKEN))
    plain, ours = oracle.with_declared(tmp_path), oracle.with_declared(tmp_path, kinds=("fp8",))
    asked = oracle.prompt(ours, list(range(5, 25)), [])
    theirs = oracle.their_logits(LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval(), ours, asked)
    (found,), (exact,) = (oracle.our_logits(one, [asked]) for one in (ours, plain))
    assert (found - theirs).abs().max() < 1e-4 * theirs.abs().max() < (exact - theirs).abs().max()


def test_groups_of_layers_with_schemes_of_their_own(tmp_path: Path) -> None:
    four, eight = weights(num_bits=4, strategy="group", group_size=64), weights(num_bits=8, strategy="channel")
    down = QuantizationScheme(targets=["re:.*down_proj"], weights=eight)
    attention = ["re:.*q_proj", "re:.*v_proj", "re:.*up_proj"]
    check(compressed(tmp_path, one=down, two=QuantizationScheme(targets=attention, weights=four)), tmp_path, 1.2)


def test_groups_of_inputs_in_an_order_of_their_own(tmp_path: Path) -> None:
    """As older versions of the library wrote them (actorder "group")."""
    model = tiny()
    args = weights(num_bits=4, strategy="group", group_size=64)
    config = QuantizationConfig(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=args)}, format="pack-quantized"
    ).model_dump()
    saved(model, tmp_path, config, lambda name, weight: packers.packed_ints(weight, 64))
    check(model, tmp_path, 5)


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    args = QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True)
    model = tiny()
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format="nvfp4-pack-quantized")
    model.config.quantization_config = QuantizationConfig(
        config_groups={"group_0": scheme}, format="nvfp4-pack-quantized"
    ).model_dump()
    model.save_pretrained(tmp_path)
    with pytest.raises(SpecError, match=r"nvfp4-pack-quantized.*there are pack-quantized"):
        open_model(tmp_path)
