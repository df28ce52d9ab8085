"""Over quantized weights on a CPU a request's answer does not depend on who is answered beside it: not by a bit."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from opsin_kernels.cpu import native
from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_server.ipc.messages import Sampling
from support import engines, oracle, quantized_checks
from support.engines import Asked
from support.oracle import Ours

PROMPTS = [list(range(5, 5 + length)) for length in (9, 30, 3, 17, 24, 9)]


@pytest.fixture(params=["int4", "int8", "fp8"])
def ours(request: pytest.FixtureRequest, tmp_path: Path) -> Ours:
    if isinstance(found := native.native(), str):
        pytest.skip(found)
    quantized_checks.tiny(tie_word_embeddings=True).save_pretrained(tmp_path)
    return oracle.load(tmp_path, WeightPolicy(request.param))


def test_an_answer_is_the_same_alone_and_among_others(ours: Ours) -> None:
    def answers(asked: list[Asked]) -> list[engines.Answer]:
        return engines.ask(engines.make_engine(ours, max_batch_tokens=256), ours, asked)

    sampling = Sampling(temperature=1.0, seed=7, top_logprobs=3)
    asked = [Asked(ids, (), 12 + i, msgspec.structs.replace(sampling, seed=i)) for i, ids in enumerate(PROMPTS)]
    together = answers(asked)
    for i, one in enumerate(asked):
        (alone,) = answers([one])
        assert alone.tokens == together[i].tokens
        assert alone.logprobs == together[i].logprobs
    assert len({tuple(answer.tokens) for answer in together}) > 1
