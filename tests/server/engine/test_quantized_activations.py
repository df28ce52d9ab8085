"""Activations in 8 bits, as an operator asks for them: where they are, and what a request gets beside others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from opsin_plugins.blocks.activation_policy import ActivationPolicy
from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_server.config import EngineConfig
from opsin_server.engine.startup.load import load_engine
from opsin_server.engine.startup.quantized_activations import activation_policy
from opsin_server.errors import ConfigError
from opsin_server.ipc.messages import Sampling
from support import adapters, engines, oracle, quantized_checks, tiny
from support.engines import Asked

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
INT8, BOTH = frozenset({"int8"}), frozenset({"int8", "fp8"})


@pytest.mark.parametrize(
    ("wanted", "device", "chip", "policy"),
    [
        ("auto", CPU, None, ActivationPolicy()),
        ("always", CPU, None, ActivationPolicy(BOTH, always=True)),
        ("auto", CUDA, (9, 0), ActivationPolicy(BOTH)),
        ("auto", CUDA, None, ActivationPolicy(BOTH)),  # of `opsin check --gpu`, which need not be here
        ("auto", CUDA, (8, 6), ActivationPolicy(INT8)),
        ("always", CUDA, (8, 6), ActivationPolicy(INT8, always=True)),
        ("never", CUDA, (9, 0), ActivationPolicy()),
    ],
)
def test_the_operator_and_the_device_decide(
    wanted: Any, device: torch.device, chip: object, policy: ActivationPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: chip is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: chip)
    assert activation_policy(EngineConfig("m", quantize_activations=wanted), device, {"int8", "int4"}) == policy


def test_what_no_weight_can_meet_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig("m", quantize_activations="always")
    with pytest.raises(ConfigError, match="needs weights of 8 bits: int8 or fp8"):
        activation_policy(config, CPU, {"int4"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(ConfigError, match=r"compute capability 8.9 or more; int8 does with any"):
        activation_policy(config, CUDA, {"fp8"})


def test_a_server_says_which_weights_meet_them(tmp_path: Path) -> None:
    quantized_checks.tiny().save_pretrained(tmp_path)
    config = EngineConfig(
        str(tmp_path), quantization="int8", quantize_activations="always", max_context=64, max_sequences=2
    )
    stored = dict(load_engine(config, lambda done, total: None).ready.stored)
    assert {"int8 w8a8", "int8"} <= stored.keys(), "the head's are as they are"


def test_base_rows_are_the_same_beside_those_of_an_adapter(tmp_path: Path) -> None:
    """To the bit, though an adapter has norms and gates hand on rows as they are, too."""
    policy = WeightPolicy("int8", activations=ActivationPolicy(BOTH, always=True))
    ours = oracle.saved(tiny.qwen2_vl(), tmp_path, policy=policy)
    ref = adapters.write(tmp_path / "adapter.safetensors", adapters.random(ours, 4, 0))
    asked = Asked([5, 6, 7, 8], (), 5, Sampling(temperature=0.0, top_logprobs=2))

    def answers(*refs: Any) -> list[engines.Answer]:
        engine, found = engines.make_engine(ours, adapter_slots=2), {}
        for number, adapter in enumerate(refs):
            engines.submit(engine, ours, str(number), asked, adapter=adapter)
        while engine.sequences:
            engines.collect(engine.step(), found)
        return [found[str(number)] for number in range(len(refs))]

    (alone,), (beside, other) = answers(None), answers(None, ref)
    assert (beside.tokens, beside.logprobs) == (alone.tokens, alone.logprobs)
    assert other.logprobs != alone.logprobs
