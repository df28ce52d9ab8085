"""Whole tiny models served through the kernels, every one of them interpreted: the definitions' own tokens."""

from __future__ import annotations

import pytest

from opsin_kernels import dispatch
from support import engines, oracle, tiny
from support.engines import Asked

IMAGE = tiny.IMAGE_TOKEN
MIX = [
    Asked([5, 6, IMAGE, 7, 8, 9], [oracle.picture(0, 40, 30)], count=6),
    Asked([4, 3, 11, 12, 13], count=6),
    Asked([9, IMAGE, 8, IMAGE, 7, 6], [oracle.picture(1, 25, 60), oracle.picture(2, 33, 33)], count=6),
]


# qwen2_vl is qwen2_5_vl without windows, and test_graphs serves it in every run.
@pytest.mark.parametrize("family", [pytest.param("qwen2_vl", marks=pytest.mark.nightly), "qwen2_5_vl", "mllama"])
def test_a_chat_through_the_kernels_gives_the_same_tokens(family: str, tmp_path, monkeypatch) -> None:
    theirs = tiny.FAMILIES[family].make()
    ours = oracle.saved(theirs, tmp_path)
    expected = [oracle.their_tokens(theirs, ours, oracle.prompt(ours, a.ids, a.images), a.count) for a in MIX]
    assert dispatch.implementation() == "interpret"
    calls: list[str] = []
    run = engines.make_engine(ours, max_batch_tokens=20)
    from opsin_kernels.gpu import attention as gpu

    attention = gpu.attention

    def counted(*args: object, **options: object):
        calls.append("attention")
        return attention(*args, **options)

    monkeypatch.setattr(gpu, "attention", counted)
    assert [a.tokens for a in engines.ask(run, ours, MIX)] == expected
    assert len(calls) > 20, "it was the kernel that ran"
