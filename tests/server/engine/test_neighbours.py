"""On a CPU a request's answer does not depend on who is answered beside it: not by a bit. Nor on whether a layer of its
step was computed in one call or part by part."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from opsin_kernels.cpu import native
from opsin_kernels.cpu.layer import NativeLayer
from opsin_plugins.blocks import decoder
from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_server.ipc.messages import Sampling
from support import engines, oracle, quantized_checks
from support.engines import Asked
from support.oracle import Ours

PROMPTS = [list(range(5, 5 + length)) for length in (9, 30, 3, 17, 24, 9)]
SIZES = quantized_checks.SIZES | {"vocab_size": 320, "hidden_size": 256, "intermediate_size": 384}


@pytest.fixture(autouse=True)
def there() -> None:
    if isinstance(found := native.native(), str):
        pytest.skip(found)


def with_biases() -> PreTrainedModel:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    return model


def with_head_norms() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(head_dim=64, **SIZES)).eval()


def answers(ours: Ours, asked: list[Asked]) -> list[engines.Answer]:
    return engines.ask(engines.make_engine(ours, max_batch_tokens=256), ours, asked)


def questions() -> list[Asked]:
    sampling = Sampling(temperature=1.0, seed=7, top_logprobs=3)
    return [Asked(ids, (), 12 + i, msgspec.structs.replace(sampling, seed=i)) for i, ids in enumerate(PROMPTS)]


@pytest.mark.parametrize("stored", ["dense", "int4", "int8", "fp8"])
def test_an_answer_is_the_same_alone_and_among_others(stored: str, tmp_path: Path) -> None:
    quantized_checks.tiny(tie_word_embeddings=True).save_pretrained(tmp_path)
    ours = oracle.load(tmp_path, WeightPolicy(stored))
    asked = questions()
    together = answers(ours, asked)
    for i, one in enumerate(asked):
        (alone,) = answers(ours, [one])
        assert alone.tokens == together[i].tokens
        assert alone.logprobs == together[i].logprobs
    assert len({tuple(answer.tokens) for answer in together}) > 1


@pytest.mark.parametrize("make", [quantized_checks.tiny, with_biases, with_head_norms])
@pytest.mark.parametrize("stored", ["dense", "int4"])
def test_a_layer_in_one_call_gives_the_bits_of_its_parts(
    make: quantized_checks.Make, stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().save_pretrained(tmp_path)
    ours = oracle.load(tmp_path, WeightPolicy(stored))
    calls = []
    run = NativeLayer.run
    monkeypatch.setattr(NativeLayer, "run", lambda *given: calls.append(1) or run(*given))
    whole = answers(ours, questions())
    assert len(calls) > 2 * 12
    calls.clear()
    monkeypatch.setattr(decoder, "step_of", lambda *given: None)
    parts = answers(ours, questions())
    assert not calls
    for one, other in zip(whole, parts, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == other.logprobs


def test_weights_of_16_bits_answer_as_their_copies_in_32_would(tmp_path: Path) -> None:
    quantized_checks.tiny().bfloat16().save_pretrained(tmp_path)
    wide = oracle.load(tmp_path)
    ours = oracle.with_declared(tmp_path)
    linear = ours.model.decoder.layers["0"].mlp.down
    assert linear.stored.bytes == 256 * 384 * 2
    assert linear.stored.bytes * 2 == wide.model.decoder.layers["0"].mlp.down.stored.bytes
    for one, other in zip(answers(ours, questions()), answers(wide, questions()), strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == other.logprobs
