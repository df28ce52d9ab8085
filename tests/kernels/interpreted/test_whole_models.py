"""Whole tiny models served through the kernels, every one of them interpreted: the definitions' own tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from opsin_kernels import dispatch
from opsin_plugins.blocks.checkpoint import load_weights
from opsin_plugins.blocks.dual_encoder import build_dual_encoder
from opsin_plugins.loading.open_served import OpenDualEncoder, open_served
from opsin_server.ipc.messages import Pooling
from support import engines, oracle, tiny, tiny_dual
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


@torch.no_grad()
def test_a_pair_and_pooled_states_through_the_kernels(tmp_path, monkeypatch) -> None:
    """Texts of several lengths in one causal launch, and a prompt that is pooled beside a chat."""
    from opsin_kernels.gpu import attention as gpu

    calls, attention = [], gpu.attention
    monkeypatch.setattr(gpu, "attention", lambda *given, **how: calls.append(how) or attention(*given, **how))
    theirs = tiny_dual.clip()
    found = open_served(tiny_dual.save(theirs, tmp_path / "clip"))
    assert isinstance(found, OpenDualEncoder)
    pair = build_dual_encoder(found.spec, found.family.builder, found.registry)
    load_weights(pair, found.family.weights(found.spec), found.files)
    texts = [[0, 5, 6, 7, 1], [0, 1], [0, 9, 8, 1]]
    ours = pair.embed_texts(torch.tensor([i for text in texts for i in text]), [len(text) for text in texts])
    for one, text in zip(ours, texts, strict=True):
        said = theirs.get_text_features(input_ids=torch.tensor([text])).pooler_output[0]
        torch.testing.assert_close(one, F.normalize(said, dim=0), atol=1e-5, rtol=0)
    assert calls, "it was the kernel that ran"
    theirs = tiny.FAMILIES["mistral"].make()
    model, ids = oracle.saved(theirs, tmp_path / "text"), list(range(3, 25))
    engine = engines.make_engine(model, max_batch_tokens=16)
    engines.submit(engine, model, "pooled", Asked(ids), pooling=Pooling("mean"))
    engines.submit(engine, model, "chat", Asked([4, 3, 11], count=3))
    answers = engines.run(engine)
    states = theirs(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].mean(0)
    vector = torch.from_numpy(np.frombuffer(answers["pooled"].embedding, "<f4").copy())
    torch.testing.assert_close(vector, F.normalize(states, dim=0), atol=1e-4, rtol=0)
    assert len(answers["chat"].tokens) == 3
