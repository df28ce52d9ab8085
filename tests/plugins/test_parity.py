"""Our blocks against transformers: logits, tokens and gradients of tiny random models in every published dialect."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from opsin_plugins.blocks.weight_policy import WeightPolicy
from support import mistral_format, oracle, tiny


def _tower_head(size: int):
    return lambda: tiny.qwen2_vl(vision={"embed_dim": 2 * size, "num_heads": 2, "depth": 1})


def _head(size: int):
    return lambda: tiny.text_model(
        "llama", num_attention_heads=2, num_key_value_heads=1, head_dim=size, tie_word_embeddings=True
    )


CASES = {name: published.make for name, published in tiny.FAMILIES.items()} | {
    "qwen2_vl tied": lambda: tiny.qwen2_vl(tie=True),
    "qwen2_vl odd sizes": lambda: tiny.qwen2_vl(
        hidden_size=60,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=20,
        vocab_size=157,
        num_hidden_layers=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 4, 4]},
    ),
    **{f"qwen2_vl tower heads of {size}": _tower_head(size) for size in (24, 40, 80, 112)},
    "pixtral tower heads of 40, one layer": lambda: tiny.pixtral(
        vision={"hidden_size": 120, "num_attention_heads": 3, "num_hidden_layers": 1}
    ),
    "qwen2_5_vl one window is enough": lambda: tiny.qwen2_5_vl(vision={"window_size": 64, "depth": 1}),
    "llava qwen2": lambda: tiny.llava("qwen2"),
    "llava mistral, last layer, class token kept": lambda: tiny.llava(
        "mistral", vision_feature_select_strategy="full", vision_feature_layer=-1, image_seq_length=17
    ),
    "llava linear rope": lambda: tiny.llava(
        sizes={"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}
    ),
    "llava_next mistral": lambda: tiny.llava_next("mistral"),
    "mllama one layer of each kind": lambda: tiny.mllama(num_hidden_layers=2, cross_attention_layers=[0]),
    **{f"llama heads of {size}": _head(size) for size in (24, 40, 80, 112)},
    "llama three key-value heads": lambda: tiny.text_model(
        "llama", hidden_size=72, num_attention_heads=9, num_key_value_heads=3, vocab_size=151
    ),
}
IMAGE = tiny.IMAGE_TOKEN
PROMPTS = [
    ([5, 6, IMAGE, 7, 8, 9], [(40, 30)]),
    ([4, 3, 11, 12, 13], []),
    ([9, IMAGE, 8, IMAGE, 7, 6], [(25, 60), (33, 33)]),
    ([IMAGE, 14], [(90, 20)]),
    ([IMAGE, IMAGE, 14, 15], [(30, 30), (12, 70)]),
    ([8, IMAGE, 14], [(4, 120)]),
]


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, oracle.Ours]:
    theirs = CASES[request.param]()
    return theirs, oracle.saved(theirs, tmp_path_factory.mktemp("model"))


def prompts(ours: oracle.Ours) -> list[oracle.Prompt]:
    return [
        oracle.prompt(ours, ids, [oracle.picture(i, *size) for i, size in enumerate(sizes)])
        for ids, sizes in PROMPTS
        if (not sizes or ours.spec.vision is not None)
        # (transformers takes pictures of Qwen2-VL that touch each other for one)
        and not (ours.spec.decoder.rope.sections and (IMAGE, IMAGE) in pairwise(ids))
    ]


@torch.no_grad()
def test_logits_of_a_packed_mixed_batch_equal_transformers_one_by_one(
    pair: tuple[PreTrainedModel, oracle.Ours],
) -> None:
    theirs, ours = pair
    asked = prompts(ours)
    packed = oracle.our_logits(ours, asked)
    for one, logits in zip(asked, packed, strict=True):
        expected = oracle.their_logits(theirs, ours, one)
        assert expected.std() > 0.3, "a flat distribution proves nothing"
        assert (logits - expected).abs().max() < 1e-4
        (alone,) = oracle.our_logits(ours, [one])
        assert (logits - alone).abs().max() < 1e-5


@pytest.mark.parametrize("family", [name for name, f in tiny.FAMILIES.items() if len(f.dialects) > 1])
@torch.no_grad()
def test_every_published_dialect_loads_the_same_weights(family: str, tmp_path: Path) -> None:
    theirs = CASES[family]()
    logits = []
    for dialect in tiny.FAMILIES[family].dialects:
        ours = oracle.load(tiny.save(theirs, tmp_path / dialect, dialect))
        logits.append(oracle.our_logits(ours, prompts(ours)[:1])[0])
    assert all(torch.equal(logits[0], other) for other in logits[1:])


@pytest.mark.parametrize("make", [tiny.pixtral, tiny.mistral3])
@torch.no_grad()
def test_mistrals_own_format_is_the_same_model(make, tmp_path: Path) -> None:
    theirs = make(sizes={"rms_norm_eps": 1e-5}) if make is tiny.pixtral else make()
    ours = oracle.load(mistral_format.save(theirs, tmp_path))
    assert ours.spec.family == "mistral_params"
    for asked in prompts(ours):
        (logits,) = oracle.our_logits(ours, [asked])
        assert (logits - oracle.their_logits(theirs, ours, asked)).abs().max() < 1e-4


def test_gradients_of_all_weights_equal_transformers(pair: tuple[PreTrainedModel, oracle.Ours]) -> None:
    theirs, ours = pair
    asked = prompts(ours)
    theirs.requires_grad_(True)
    ours.model.requires_grad_(True)
    try:
        sum(loss(oracle.their_logits(theirs, ours, one)) for one in asked).backward()
        sum(loss(logits) for logits in oracle.our_logits(ours, asked)).backward()
        checked = 0
        for name, mine, other in matched_gradients(theirs, ours):
            # (a bias of keys has no gradient but rounding; that of one gate is a sum of 10^4 products that cancel)
            floor = 0.1 if other.numel() == 1 else 2e-3
            error = (mine - other).norm() / other.norm().clamp(min=floor)
            assert error < 1e-4, f"{name}: {error}"
            checked += 1
        assert checked == sum(1 for _ in ours.model.parameters())
    finally:
        for model in (theirs, ours.model):
            model.requires_grad_(False)
            model.zero_grad()


def loss(logits: torch.Tensor) -> torch.Tensor:
    targets = torch.arange(len(logits)) % 100
    return torch.nn.functional.cross_entropy(logits, targets)


def matched_gradients(theirs: PreTrainedModel, ours: oracle.Ours):
    """Our parameters' gradients beside those of the tensors that the weight rules put into them."""
    from opsin_plugins.blocks.checkpoint import taken, targets
    from opsin_plugins.loading.weight_matching import assign
    from opsin_plugins.spec import TensorInfo

    named = {k: v for k, v in theirs.named_parameters() if k != "lm_head.weight" or not ours.spec.decoder.tied}
    infos = {k: TensorInfo(Path(), "F32", tuple(v.shape)) for k, v in named.items()}
    shapes = {k: t.shape for k, t in targets(ours.model).items()}
    plan = assign(infos, ours.architecture.weights(ours.spec), shapes)
    for name, parameter in ours.model.named_parameters():
        sources = plan[name.replace(".stored.weight", ".weight")]
        tensors = [named[s.key] for s in sources]
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]
        assert parameter.grad is not None, name
        yield name, parameter.grad, torch.cat([taken(s, g) for s, g in zip(sources, grads, strict=True)])


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "mllama", "llava.pixtral"])
@torch.no_grad()
def test_bfloat16_keeps_the_order_of_the_likely_tokens(family: str, tmp_path: Path) -> None:
    """Rounding differs by where it happens and by processor: ours stays as near as transformers' own in bfloat16."""
    theirs = CASES[family]()
    exact, ours = oracle.saved(theirs, tmp_path / "a"), oracle.saved(theirs, tmp_path / "b", dtype=torch.bfloat16)
    theirs = theirs.to(torch.bfloat16)
    for asked in prompts(exact):
        expected = oracle.our_logits(exact, [asked])[0]
        got = oracle.our_logits(ours, [asked])[0].float()
        off, allowed = got - expected, oracle.their_logits(theirs, ours, asked).float() - expected
        assert off.square().mean() < 2 * allowed.square().mean()
        assert off.abs().max() < 3 * allowed.abs().max()
        clear = expected.topk(2).values.diff().abs().squeeze(-1) > 6 * allowed.square().mean().sqrt()
        assert torch.equal(expected.argmax(-1)[clear], got.argmax(-1)[clear])
        assert bool((got.topk(5).indices[..., None] == expected.argmax(-1)[:, None, None]).any(1).all())


@torch.no_grad()
def test_int8_rows_stay_near_the_dense_model(tmp_path: Path) -> None:
    directory = tiny.save(CASES["qwen2_vl"](), tmp_path)
    dense, small = oracle.load(directory), oracle.load(directory, WeightPolicy("int8"))
    asked = prompts(dense)
    for a, b in zip(oracle.our_logits(dense, asked), oracle.our_logits(small, asked), strict=True):
        assert 0 < (a - b).abs().max() < 0.25 * a.std()
