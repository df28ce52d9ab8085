"""Adapters as PEFT saves them, sixteen in one batch: each as PEFT computes it on transformers, and as served alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from opsin_plugins.blocks.adapter_slots import AdapterSlots, AdapterWeights
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.trained_projectors import TrainedProjectors
from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_plugins.conformance.batches import Adapters, Prompt, paged, whole
from opsin_plugins.loading.linears import linears_of
from opsin_plugins.loading.registry import Registry
from opsin_server.engine.running.adapter_loader import SlotShape, read_adapter
from opsin_server.ipc.messages import AdapterRef
from support import oracle, peft, tiny
from support.oracle import Ours

IMAGE = tiny.IMAGE_TOKEN
COUNT, RANKS, LARGEST = 16, (4, 8, 16, 33, 64), 64
PROJECTORS = {
    "qwen2_vl": "merger",
    "qwen2_5_vl": "visual.merger",
    "llava": "multi_modal_projector",
    "llava.pixtral": "linear_2",
    "idefics3": "connector",
    "mllama": "multi_modal_projector",
}
FAMILIES = [*PROJECTORS, "qwen"]
# Only a tower's, only a language model's, every linear; plain, rank-stabilised, by patterns; with a trained projector.
# (torch computes nn.MultiheadAttention, as of Qwen-VL's resampler, without asking its output layer: PEFT trains none.)
PARTS = (
    r"^(?!.*attn_pool\.attn)",
    r"^(?!.*attn_pool).*(visual|vision)",
    r"(q_proj|v_proj|c_attn|lm_head)$",
    r"(layers|\.h)\.",
)
ASKED = [([5, IMAGE, 7, 8, 9], (44, 52)), ([4, 3, 11, 12, 13, 14], None)]
LIMIT = 1e-4


@dataclass
class Case:
    theirs: PreTrainedModel
    directory: Path
    options: dict[str, str]
    ours: Ours
    peft: list[peft.Peft]
    files: list[Path]
    prompts: list[Prompt]

    def loaded(self) -> tuple[AdapterSlots, list[AdapterWeights]]:
        linears = linears_of(self.ours.spec, Registry())
        projector = self.ours.spec.projector
        assert projector is not None
        shapes = {f"projector.{name}": shape for name, shape in projector.parameters().items()}
        cpu = torch.device("cpu")
        slots = AdapterSlots(
            linears, COUNT, LARGEST, projectors=TrainedProjectors(self.ours.model, COUNT, cpu, torch.float32)
        )
        found = []
        for number, file in enumerate(self.files, 1):
            ref = AdapterRef(hashlib.sha256(file.read_bytes()).digest(), str(file))
            found.append(read_adapter(ref, SlotShape(linears, LARGEST, torch.float32, shapes)).weights)
            slots.load(number, found[-1])
        return slots, found


def fields(theirs: PreTrainedModel, family: str, number: int) -> dict[str, Any]:
    rank = RANKS[number % len(RANKS)]
    targets = peft.linears(theirs, PARTS[number % len(PARTS)])
    stabilised = number % 3 == 1
    found: dict[str, Any] = {"r": rank, "lora_alpha": 3 if stabilised else rank + number / 4, "use_rslora": stabilised}
    if number % 5 == 2:
        found |= {"rank_pattern": {"q_proj|c_attn": 5}, "alpha_pattern": {r"layers.1.self_attn.v_proj": 1.5}}
    if number % 6 == 3 and (projector := PROJECTORS.get(family)) is not None:
        targets = [name for name in targets if projector not in name]
        found["modules_to_save"] = [projector]
    return found | {"target_modules": targets}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    theirs, options = tiny.FAMILIES[family].make().eval(), dict(tiny.FAMILIES[family].options)
    directory = tiny.save(theirs, folder / "model")
    base = peft.base_of(directory, LARGEST, options)
    made = [peft.make(theirs, folder / str(i), i, **fields(theirs, family, i)) for i in range(COUNT)]
    files = [one.directory.with_suffix(".safetensors") for one in made]
    for one, file in zip(made, files, strict=True):
        peft.converted(one.directory, base).write(file)
    ours = oracle.load(directory, options=options)
    prompts = [oracle.prompt(ours, ids, [] if size is None else [oracle.picture(0, *size)]) for ids, size in ASKED]
    return Case(theirs, directory, options, ours, made, files, prompts)


def mixed(case: Case, slots: AdapterSlots, ours: Ours) -> list[list[Tensor]]:
    """Logits of the base model and of each adapter, all in one batch: of each prompt."""
    owners = list(range(COUNT + 1))
    prompts = [prompt for prompt in case.prompts for _ in owners]
    got = whole(ours.model, prompts, Adapters(slots, owners * len(case.prompts)))
    by_chunks = paged(ours.model, prompts, 3, Adapters(slots, owners * len(case.prompts)))
    for one, other in zip(got, by_chunks, strict=True):
        assert (one - other).abs().max() < LIMIT
    return [got[i : i + len(owners)] for i in range(0, len(got), len(owners))]


@torch.no_grad()
def test_each_computes_what_peft_does_and_what_it_does_alone(case: Case) -> None:
    slots, _ = case.loaded()
    for prompt, got in zip(case.prompts, mixed(case, slots, case.ours), strict=True):
        assert (got[0] - oracle.their_logits(case.theirs, case.ours, prompt)).abs().max() < LIMIT
        for number, one in enumerate(case.peft, 1):
            expected = one.logits(case.ours, prompt)
            assert (got[number] - expected).abs().max() < LIMIT, number
            assert torch.equal(got[number].argmax(-1), expected.argmax(-1))
            if number % 5 == 1:
                (alone,) = whole(case.ours.model, [prompt], Adapters(slots, [number]))
                assert (got[number] - alone).abs().max() < 1e-5


@torch.no_grad()
def test_over_quantized_weights_as_over_what_these_stand_for(case: Case) -> None:
    slots, _ = case.loaded()
    for form in ("int8", "int4"):
        _check_over(form, case, slots)


def _check_over(form: str, case: Case, slots: AdapterSlots) -> None:
    small = oracle.load(case.directory, WeightPolicy(form), options=case.options)
    plain = oracle.load(case.directory, options=case.options)
    for (_, packed), (_, dense) in zip(small.model.named_modules(), plain.model.named_modules(), strict=False):
        if isinstance(packed, Linear) and isinstance(dense, Linear):
            dense.stored.fill(0, packed.stored.dequantized())
    for got, expected in zip(mixed(case, slots, small), mixed(case, slots, plain), strict=True):
        for one, other in zip(got, expected, strict=True):
            assert (one - other).abs().max() < LIMIT
