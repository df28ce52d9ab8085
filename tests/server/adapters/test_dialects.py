"""The names that adapters' keys have had, by who exported them: each form loads whole, and as the same adapter."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from opsin_server.adapters.base_model import BaseModel
from opsin_server.adapters.convert import Converted
from support import mistral_format, peft, tiny

OUTER = "base_model.model."
# From the names of transformers 5, which PEFT saves today, to those of others. {layer} is a number.
RENAMED: dict[str, dict[str, dict[str, str]]] = {
    "qwen2_vl": {
        "transformers 4.45 to 4.51": {"model.language_model.": "model.", "model.visual.": "visual."},
        "Unsloth": {},
        "Qwen2 alone, in its language model": {"model.language_model.": "model.language_model.model."},
        "vLLM's names": {"model.language_model.": "language_model.model.", "model.visual.": "visual."},
    },
    "qwen2_5_vl": {"transformers 4.49 to 4.51": {"model.language_model.": "model.", "model.visual.": "visual."}},
    "llava": {
        "transformers 4.36 to 4.51": {
            "model.language_model.": "language_model.model.",
            "model.vision_tower.": "vision_tower.vision_model.",
            "model.multi_modal_projector.": "multi_modal_projector.",
            "lm_head": "language_model.lm_head",
        },
        "transformers 4.52 to 4.57": {"model.vision_tower.": "model.vision_tower.vision_model."},
        "LLaVA's own code": {
            "model.language_model.": "model.",
            "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
            "model.multi_modal_projector.linear_1": "model.mm_projector.0",
            "model.multi_modal_projector.linear_2": "model.mm_projector.2",
        },
    },
    "llava.pixtral": {
        "transformers 4.45 to 4.51": {
            "model.language_model.": "language_model.model.",
            "model.vision_tower.": "vision_tower.",
            "model.multi_modal_projector.": "multi_modal_projector.",
            "lm_head": "language_model.lm_head",
        },
    },
    "mllama": {
        "transformers 4.45 to 4.51": {
            "model.language_model.": "language_model.model.",
            "model.vision_model.": "vision_model.",
            "model.multi_modal_projector": "multi_modal_projector",
            "lm_head": "language_model.lm_head",
        },
    },
    "idefics3": {
        "without the outer module": {
            "model.text_model.": "text_model.",
            "model.vision_model.": "vision_model.",
            "model.connector.": "connector.",
        },
    },
}
# What exporters put around a key, whatever the names are.
WRAPPED: dict[str, Callable[[str], str]] = {
    "an adapter's name (ms-swift 1, torch.save of a state)": lambda key: re.sub(
        r"\.(lora_[AB])\.", r".\1.default.", key
    ),
    "torch.compile (Axolotl, TRL)": lambda key: key.replace(OUTER, f"{OUTER}_orig_mod."),
    "FSDP": lambda key: key.replace(".layers.", ".layers._fsdp_wrapped_module."),
    "DeepSpeed": lambda key: f"module.{key}",
    "checkpointed layers": lambda key: re.sub(r"(\.\d+\.)", r"\1_checkpoint_wrapped_module.", key),
    "no base_model": lambda key: key.removeprefix(OUTER),
}
CASES = [(family, name) for family, forms in RENAMED.items() for name in forms]


class Case:
    def __init__(self, family: str, folder: Path) -> None:
        theirs = tiny.FAMILIES[family].make()
        directory = tiny.save(theirs, folder / "model")
        self.base: BaseModel = peft.base_of(directory)
        self.peft = peft.make(theirs, folder / "adapter", 0, r=4, lora_alpha=6)
        self.converted = peft.converted(self.peft.directory, self.base)


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def rewritten(source: Path, target: Path, change: Callable[[str], str]) -> Path:
    """The same adapter with other keys."""
    tensors = load_file(source / "adapter_model.safetensors")
    renamed = {change(key): tensor for key, tensor in tensors.items()}
    assert len(renamed) == len(tensors)
    target.mkdir()
    save_file(renamed, target / "adapter_model.safetensors")
    (target / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    return target


def assert_same(one: Converted, other: Converted) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    assert all(one.tensors[key].equals(other.tensors[key]) for key in one.tensors)
    assert (one.targets, one.tensors_read) == (other.targets, other.tensors_read)


def renamed(names: dict[str, str]) -> Callable[[str], str]:
    def change(key: str) -> str:
        inner = key.removeprefix(OUTER)
        old = next((old for old in names if inner.startswith(old)), "")
        return OUTER + names.get(old, "") + inner.removeprefix(old)

    return change


@pytest.mark.parametrize(("case", "form"), CASES, indirect=["case"], ids=[f"{f}: {n}" for f, n in CASES])
def test_every_form_of_names(case: Case, form: str, tmp_path: Path) -> None:
    change = renamed(RENAMED[case.base.family][form])
    assert_same(peft.converted(rewritten(case.peft.directory, tmp_path / "a", change), case.base), case.converted)


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("case", ["qwen2_vl", "llava"], indirect=True)
def test_what_exporters_wrap_keys_in(case: Case, how: str, tmp_path: Path) -> None:
    assert_same(peft.converted(rewritten(case.peft.directory, tmp_path / "a", WRAPPED[how]), case.base), case.converted)


@pytest.mark.parametrize("case", ["llava.pixtral", "mistral3", "mistral"], indirect=True)
def test_mistrals_own_adapters_fit_the_published_form_of_transformers(case: Case, tmp_path: Path) -> None:
    """Rows of queries and keys stand in another order there; the scale is in params.json."""
    folder = mistral_format.save_adapter(case.peft.directory, case.peft.model.config, tmp_path / "mistral", 4, 1.5)
    found = peft.converted(folder, case.base)
    assert found.tensors.keys() == case.converted.tensors.keys()
    assert all(found.tensors[key].equals(case.converted.tensors[key]) for key in found.tensors)
    assert found.targets == {
        "output" if group == "lm_head" else group: n for group, n in case.converted.targets.items()
    }


@pytest.mark.parametrize("case", ["llava"], indirect=True)
def test_llavas_own_training_leaves_the_projector_beside(case: Case, tmp_path: Path) -> None:
    source = load_file(case.peft.directory / "adapter_model.safetensors")
    only = {key: tensor for key, tensor in source.items() if "language_model" in key}
    folder = tmp_path / "llava"
    folder.mkdir()
    save_file(only, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_bytes((case.peft.directory / "adapter_config.json").read_bytes())
    shapes = {"0.weight": (64, 32), "0.bias": (64,), "2.weight": (64, 64), "2.bias": (64,)}
    trained = {f"base_model.model.model.mm_projector.{name}": torch.randn(shape) for name, shape in shapes.items()}
    save_file(trained, folder / "non_lora_trainables.safetensors")
    found = peft.converted(folder, case.base)
    assert found.projector == 4
    assert found.tensors_read == len(only) + 4
