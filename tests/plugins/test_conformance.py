"""The conformance kit passes what is right, and names what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points

import pytest

from opsin_kernels.activations import activated
from opsin_plugins.blocks.fusions.scatter import ScatterFusion
from opsin_plugins.blocks.slot_lora import Run, SlotLora
from opsin_plugins.blocks.stages import Stage
from opsin_plugins.blocks.tower import Tower
from opsin_plugins.conformance.kit import CHECKS, Result, check_architecture, named, run
from opsin_plugins.families.architectures.llava import Llava
from opsin_plugins.families.architectures.mllama import Mllama
from opsin_plugins.families.architectures.qwen2_vl import Qwen2VL
from opsin_plugins.families.encoders.clip import Clip
from opsin_plugins.families.positions import line
from opsin_plugins.loading.registry import GROUPS, Registry
from opsin_plugins.spec import (
    Architecture,
    Concat,
    Expanded,
    Ignore,
    ImageBudget,
    LinearShape,
    ModelSpec,
    Rename,
    SpecError,
    VideoBudget,
    VideoPlan,
    VideoSource,
)
from support import tiny

BUILT_IN = sorted(
    p.name
    for p in entry_points(group=GROUPS["architecture"])
    if p.value.startswith("opsin_plugins.families.architectures.")
)
QUICK = tuple(check for check in CHECKS if check.name not in ("imports", "transformers"))  # these take seconds

UP_TO_VIDEOS = ("example", "spec", "weights", "preprocess", "expand", "positions", "videos")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opsin_plugins.conformance.kit.CHECKS", QUICK)


@pytest.fixture
def no_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """import-linter sees to those."""
    kept = tuple(check for check in CHECKS if check.name != "imports")
    monkeypatch.setattr("opsin_plugins.conformance.kit.CHECKS", kept)


def verdicts(results: Sequence[Result]) -> Mapping[str, str]:
    return {result.check: f"{result.verdict}: {result.remark}" for result in results}


@pytest.mark.usefixtures("no_imports")
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_family_keeps_the_contract(name: str) -> None:
    registry = Registry()
    found = verdicts(check_architecture(name, named(name, registry), registry))
    assert not [f"{check} {said}" for check, said in found.items() if said.startswith("FAILED")]
    assert found["example"].startswith("ok"), "a built-in family brings an example"
    assert found["packed batch"].startswith("ok")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": (0, 1, 9)}, "are not all there"),
        ({"frames": (1, 0)}, "the order of its frames"),
        ({"tokens": 10**6}, "visual tokens of tower and projector"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_a_plan_of_a_video_that_is_wrong_is_named(
    change: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Qwen2VL.plan_video

    def wrong(self: Qwen2VL, source: VideoSource, spec: ModelSpec, budget: VideoBudget) -> VideoPlan:
        if budget.max_tokens is not None:
            raise SpecError("too many")
        return replace(plan(self, source, spec, budget), **change)  # type: ignore[arg-type]

    monkeypatch.setattr(Qwen2VL, "plan_video", wrong)
    monkeypatch.setattr("opsin_plugins.conformance.kit.CHECKS", tuple(c for c in QUICK if c.name in UP_TO_VIDEOS))
    found = verdicts(check_architecture("qwen2_vl", Qwen2VL(), Registry()))
    assert found["videos"].startswith("FAILED")
    assert said in found["videos"]


def test_every_family_has_a_tiny_model() -> None:
    under_other_names = {"mistral_params": "llava.pixtral", "qwen.visual": "qwen"}
    assert {under_other_names.get(name, name) for name in BUILT_IN} <= set(tiny.FAMILIES)


# ------------------------------------------------------------------------------------------- deliberate faults


class OneRowMore(Llava):
    def preprocess(self, images, spec, budget):
        return [replace(item, tokens=item.tokens + 1) for item in super().preprocess(images, spec, budget)]


class NewPixelsEachTime(Llava):
    calls = 0

    def preprocess(self, images, spec, budget):
        NewPixelsEachTime.calls += 1
        return [replace(i, pixels=i.pixels + NewPixelsEachTime.calls) for i in super().preprocess(images, spec, budget)]


class LargerWithABudget(Qwen2VL):
    def preprocess(self, images, spec, budget):
        limit = 8 if budget.max_tokens is None else 40
        return super().preprocess(images, spec, ImageBudget(max_tokens=limit))


class NoDelta(Qwen2VL):
    def positions(self, expanded, items, spec):
        return super().positions(expanded, items, spec)[0], 0


class OneAxis(Qwen2VL):
    def positions(self, expanded, items, spec):
        return line(len(expanded.ids))


class SwappedQueriesAndKeys(Llava):
    """In the tower, where all three have one shape."""

    def weights(self, spec):
        return [self._swapped(rule) if isinstance(rule, Concat) else rule for rule in super().weights(spec)]

    @staticmethod
    def _swapped(rule):
        q, k, *v = rule.sources
        return replace(rule, sources=(k, q, *v)) if rule.target.startswith("vision.") else rule


class RuleMissing(Llava):
    def weights(self, spec):
        return [
            r
            for r in super().weights(spec)
            if not (isinstance(r, Rename) and r.target.startswith("decoder") and "mlp.down" in r.target)
        ]


class IgnoresWhatItNeeds(Llava):
    def weights(self, spec):
        return [Ignore("model.language_model.norm.weight", "a mistake"), *super().weights(spec)]


class TakesAnyNumber(Llava):
    def expand(self, ids, items, spec, encode):
        count = list(ids).count(spec.image_token)
        return super().expand(ids, [*items, *items[:1] * count][:count] if items else [], spec, encode)


class LosesText(Llava):
    def expand(self, ids, items, spec, encode):
        return super().expand(list(ids)[:-1], items, spec, encode)


class SpansBackwards(Llava):
    def expand(self, ids, items, spec, encode):
        expanded = super().expand(ids, items, spec, encode)
        return Expanded(expanded.ids, expanded.spans[::-1])


class RangesFall(Mllama):
    def expand(self, ids, items, spec, encode):
        expanded = super().expand(ids, items, spec, encode)
        memory = None if expanded.visible is None else expanded.visible[::-1].copy()
        return Expanded(expanded.ids, expanded.spans, memory)


class GroupsOverlap(Llava):
    def lora_groups(self, spec):
        groups = super().lora_groups(spec)
        return {**groups, "cross.mlp": groups["language.mlp"]}


class ListInSpec(Llava):
    def spec(self, files):
        return replace(super().spec(files), eos=[2])


FAULTS: Sequence[tuple[type[Llava] | type[Qwen2VL] | type[Mllama], str, str]] = [
    (ListInSpec, "spec", "cannot be hashed: unhashable type: 'list'"),
    (RuleMissing, "weights", "no rule gives 3 of 66 weights: decoder.layers.0.mlp.down.weight"),
    (IgnoresWhatItNeeds, "weights", "1 weights that no key fills: decoder.norm.weight"),
    (GroupsOverlap, "lora groups", "is in both language.mlp and cross.mlp"),
    (OneRowMore, "preprocess", "rows, where tower and projector make 16 visual tokens: 17, not 16"),
    (NewPixelsEachTime, "preprocess", "the second time: other pixels"),
    (LargerWithABudget, "preprocess", "with an ample budget, grid: (1, 10, 8), not (1, 6, 4)"),
    (TakesAnyNumber, "expand", "0 placeholders for 1 picture are taken"),
    (LosesText, "expand", "the text around the pictures"),
    (SpansBackwards, "expand", "span 1 + 16 in a prompt of 36, after one that ends at 34"),
    (RangesFall, "expand", "the ends of the ranges fall"),
    (NoDelta, "positions", "where delta 0 wants"),
    (OneAxis, "positions", "shape of the positions: (1, "),
]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("faulty", "check", "said"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_fault_of_the_declaration_is_named(
    faulty: Callable[[], Architecture], check: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = faulty.__mro__[1]  # type: ignore[attr-defined]
    monkeypatch.setattr(faulty, "example", lambda self: right().example(), raising=False)
    found = verdicts(check_architecture(right.name, faulty(), registry_with(right.name, faulty), print))
    assert found[check].startswith("FAILED"), found
    assert said in found[check]
    assert [name for name, verdict in found.items() if verdict.startswith("FAILED")] == [check]


ENCODER_FAULTS = [
    ({"model_types": ()}, "it claims no model_type, and does not say why"),
    ({"model_types": ("siglip_vision_model",)}, "model_type 'siglip_vision_model' is claimed by 2 vision encoders"),
    ({"prefix": "vision_model"}, "prefix 'vision_model' does not end with a dot"),
    ({"left_out": ("encoder.layers.0.{rest}",)}, "leaves out encoder.layers.0."),
    ({"attention": r"encoder\.blocks\.{i}\.attn"}, "attention: 'encoder\\\\.blocks"),
    ({"mlp": r"encoder\.layers\.{i}\.(mlp\.fc1|layer_norm2)"}, "mlp: encoder.layers.0.layer_norm2 is no linear"),
]


@pytest.mark.parametrize(("change", "said"), ENCODER_FAULTS, ids=[next(iter(fault[0])) for fault in ENCODER_FAULTS])
def test_a_fault_of_what_an_encoder_claims_is_named(
    change: Mapping[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tuple(check for check in CHECKS if check.name in ("example", "spec", "claims"))
    monkeypatch.setattr("opsin_plugins.conformance.kit.CHECKS", kept)
    registry = Registry()
    assert verdicts(check_architecture("llava", Llava(), registry))["claims"] == "ok: clip_vision_model"
    spec = Llava().spec(Llava().example())
    monkeypatch.setattr(Llava, "spec", lambda self, files: spec)
    monkeypatch.setattr(Clip, "claims", replace(Clip.claims, **change))
    found = verdicts(check_architecture("llava", Llava(), registry))
    assert found["claims"].startswith("FAILED"), found
    assert said in found["claims"]


def registry_with(name: str, architecture: type) -> Registry:
    """The installed plugins, with one family replaced."""

    class Point(EntryPoint):
        def load(self):
            return architecture

    def points(group: str):
        for point in entry_points(group=group):
            replaced = group == GROUPS["architecture"] and point.name == name
            yield Point(name, "", group) if replaced else point

    return Registry(entry_points=points)


@pytest.mark.usefixtures("no_imports")
def test_queries_and_keys_that_are_swapped_differ_from_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SwappedQueriesAndKeys, "example", lambda self: Llava().example())
    registry = registry_with("llava", SwappedQueriesAndKeys)
    found = verdicts(check_architecture("llava", SwappedQueriesAndKeys(), registry))
    assert found["weights"].startswith("ok"), "the names are right"
    assert "logits of text and a picture, here and in transformers, differ by" in found["transformers"]


@pytest.mark.usefixtures("quick")
def test_a_picture_that_leaks_into_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(self, pixels, pictures, lora=None):
        features = Tower.forward(self, pixels, pictures, lora)
        return features + 1e-3 * features.mean(0)

    monkeypatch.setattr("opsin_plugins.blocks.tower.Tower.__call__", leaking, raising=False)
    registry = Registry()
    found = verdicts(check_architecture("qwen2_vl", Qwen2VL(), registry))
    assert "with others and alone, differ by" in found["pictures alone"]
    assert "in a batch and alone, differ by" in found["packed batch"]


@pytest.mark.usefixtures("quick")
def test_a_fusion_that_counts_rows_of_the_batch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed_up(self, x, visual):
        return x.index_copy(0, visual.rows, visual.tokens.flip(0))

    monkeypatch.setattr(ScatterFusion, "on_embeddings", mixed_up)
    found = verdicts(check_architecture("llava", Llava(), Registry()))
    assert found["packed batch"].startswith("FAILED")
    assert "in chunks of 1 and at once, differ by" in found["chunks"]


@pytest.mark.usefixtures("quick")
def test_a_weight_that_nothing_uses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def detached(self, x, visual):
        return x.index_copy(0, visual.rows, visual.tokens.detach())

    monkeypatch.setattr(ScatterFusion, "on_embeddings", detached)
    found = verdicts(check_architecture("llava", Llava(), Registry()))
    assert "no gradient reaches 45 weights: vision.class_token" in found["gradients"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("place", "dropping", "named_"),
    [
        (
            "opsin_plugins.blocks.tower.Tower.__call__",
            lambda self, pixels, pictures, lora=None: Tower.forward(self, pixels, pictures, None),
            "no adapter reaches vision.layers.0.attention.qkv, vision.layers.0.attention.out, ",
        ),
        (
            "opsin_plugins.blocks.layers.PlainMLP.forward",
            lambda self, x, lora: self.down(activated(self.up(x, lora), self.activation)),
            "no adapter reaches vision.layers.0.mlp.down, vision.layers.1.mlp.down, projector.mlp.down: ",
        ),
        (
            "opsin_plugins.blocks.slot_lora.SlotLora.resized",
            lambda self, counts: SlotLora(self.slots, tuple(Run(r.slot, n) for r, n in zip(self.runs[::-1], counts))),  # noqa: B905
            "with adapters and with merged weights differ by",
        ),
    ],
)
def test_a_linear_that_no_adapter_reaches_is_named(
    monkeypatch: pytest.MonkeyPatch, place: str, dropping: Callable[..., object], named_: str
) -> None:
    monkeypatch.setattr(place, dropping, raising=False)
    found = verdicts(check_architecture("qwen2_vl", Qwen2VL(), Registry()))
    assert found["packed batch"].startswith("ok"), "without adapters nothing is wrong"
    assert found["adapters"].startswith("FAILED")
    assert named_ in found["adapters"]


class ListsTooMuch(Clip):
    def linears(self, spec):
        return {**spec.linears(), "layers.7.attention.qkv": LinearShape(32, (32, 32, 32))}


class ListsOtherShapes(Clip):
    def linears(self, spec):
        return {**spec.linears(), "layers.0.attention.qkv": LinearShape(32, (96,))}


class ListsTooLittle(Clip):
    def linears(self, spec):
        return {name: shape for name, shape in spec.linears().items() if "mlp" not in name}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (
            ListsTooMuch,
            "vision.layers.7.attention.qkv is listed (by `linears` of encoder, projector or fusion), and",
        ),
        (ListsOtherShapes, "the shape of vision.layers.0.attention.qkv: "),
        (ListsTooLittle, "no linear (vision.layers."),
    ],
)
def test_linears_that_are_listed_wrongly_are_named(
    monkeypatch: pytest.MonkeyPatch, encoder: type[Clip], said: str
) -> None:
    registry = Registry()
    monkeypatch.setattr(registry, "encoder", lambda name: encoder())
    found = verdicts(check_architecture("llava", Llava(), registry))
    assert found["linears"].startswith("FAILED")
    assert said in found["linears"]


@pytest.mark.usefixtures("quick")
def test_stages_that_are_not_the_forward_pass_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = Tower.stages
    monkeypatch.setattr(Tower, "stages", lambda self, *given: [s for s in stages(self, *given) if s.name != "layers.1"])
    found = verdicts(check_architecture("qwen2_vl", Qwen2VL(), Registry()))
    assert "visual tokens in stages and at once differ by" in found["stages"]


@pytest.mark.usefixtures("quick")
def test_stages_that_drop_the_adapters_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = Tower.stages
    monkeypatch.setattr(Tower, "stages", lambda self, pictures, lora=None: stages(self, pictures, None))
    found = verdicts(check_architecture("qwen2_vl", Qwen2VL(), Registry()))
    assert found["adapters"].startswith("ok")
    assert "visual tokens in stages and at once with adapters differ by" in found["stages"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (Stage("one", ("pixels",), ("x",), lambda pixels: (pixels,)), "stage 'projector' takes 'features', which no"),
        (
            Stage("one", ("pixels",), ("features",), lambda pixels: pixels),
            "stage 'one' must return a tuple of 1: features",
        ),
    ],
)
def test_a_stage_that_breaks_its_word_is_named(monkeypatch: pytest.MonkeyPatch, stage: Stage, said: str) -> None:
    monkeypatch.setattr(Tower, "stages", lambda self, pictures, lora=None: [stage])
    found = verdicts(check_architecture("qwen2_vl", Qwen2VL(), Registry()))
    assert said in found["stages"]


@pytest.mark.usefixtures("quick")
def test_a_tower_without_stages_is_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Tower, "stages")
    found = verdicts(check_architecture("qwen2_vl", Qwen2VL(), Registry()))
    assert found["stages"].startswith("ok")


@pytest.mark.usefixtures("quick")
def test_a_plugin_without_an_example_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Llava, "example", lambda self: None)
    results = check_architecture("llava", Llava(), Registry())
    assert {result.verdict for result in results} == {"skipped"}
    assert results[0].remark.startswith("the plugin brings no example")


@pytest.mark.usefixtures("quick")
def test_an_error_of_the_plugin_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Llava, "lora_groups", lambda self, spec: {}["language.mlp"])
    assert not run(["llava", "nonesuch"], Registry())
    out = capsys.readouterr().out
    assert "lora groups     FAILED: KeyError: 'language.mlp' (test_conformance.py:" in out
    assert "loads           FAILED: no architecture plugin claims model_type 'nonesuch'" in out


def test_imports_of_torch_are_named() -> None:
    """The torch half of a plugin in the place of the torch-free one."""
    from opsin_plugins.conformance import declarations
    from opsin_plugins.conformance.subject import Subject
    from opsin_plugins.conformance.verdicts import Failed

    class Heavy(Llava):
        def example(self):
            return Llava().example()

    Heavy.__module__ = "opsin_plugins.blocks.tower"
    registry = Registry()
    with pytest.raises(Failed, match=r"opsin_plugins\.blocks\.tower imports torch"):
        declarations.imports(Subject("llava", Heavy(), registry, None))  # type: ignore[arg-type]
    assert "encoders.clip" in declarations.imports(Subject("llava", Llava(), registry, None))  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick")
def test_the_command_prints_a_line_a_check_and_fails_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["llama"], Registry())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "llama"
    assert len(lines) == 1 + len(QUICK)
    assert all(" ok" in line or " skipped: " in line for line in lines[1:])
