"""What is not the adapter of this model, or none at all: refused in a sentence that names it, and nothing applied."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from opsin_server.adapters.base_model import BaseModel
from opsin_server.adapters.problems import BadAdapter
from support import peft, tiny

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Q = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class Case:
    def __init__(self, folder: Path) -> None:
        self.theirs = tiny.qwen2_vl()
        self.directory = tiny.save(self.theirs, folder / "model")
        self.base: BaseModel = peft.base_of(self.directory)
        self.adapter = peft.make(self.theirs, folder / "adapter", 0, r=4, lora_alpha=6).directory

    def copy(self, to: Path, change: Change = lambda tensors: tensors, **fields: Any) -> Path:
        to.mkdir()
        save_file({k: v.contiguous() for k, v in change(load_file(self.adapter / WEIGHTS)).items()}, to / WEIGHTS)
        config = json.loads((self.adapter / CONFIG).read_text())
        (to / CONFIG).write_text(json.dumps(config | fields))
        return to

    def refusal(self, directory: Path) -> BadAdapter:
        with pytest.raises(BadAdapter) as caught:
            peft.converted(directory, self.base)
        return caught.value


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("refusals"))


def with_(key: str, tensor: Tensor) -> Change:
    return lambda tensors: {**tensors, key: tensor}


def changed(key: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors: {**tensors, key: change(tensors[key])}


def holding(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.cat([tensor.flatten()[:-1], torch.tensor([value], dtype=tensor.dtype)]).view_as(tensor)


INNER = "base_model.model.model.language_model"
EMBEDDING = f"{INNER}.embed_tokens"
A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
CHANGES: dict[str, tuple[Change, str]] = {
    "a layer too many": (with_(A.replace("layers.0", "layers.7"), torch.ones(4, 64)), "its other half is missing"),
    "another model's layer": (lambda t: {k.replace("layers.1", "layers.17"): v for k, v in t.items()}, "layers.17"),
    "no name of this model": (with_("base_model.model.something.weight", torch.ones(3)), "something.weight: neither"),
    "half a pair": (lambda t: {k: v for k, v in t.items() if k != B}, f"{A}: its other"),
    "wrong inputs": (changed(A, lambda a: a[:, :-1]), "made for 63 inputs and 64 outputs"),
    "wrong outputs": (changed(B, lambda b: b[:-1]), "made for 64 inputs and 63 outputs"),
    "halves of two ranks": (changed(B, lambda b: b[:, :-1]), "do not fit each other"),
    "a rank that is not in the configuration": (
        lambda t: {**t, A: torch.ones(5, 64), B: torch.ones(64, 5)},
        "rank 5, but adapter_config.json says 4",
    ),
    "not a number": (changed(B, holding(float("nan"))), "lora_B.weight: there is a number that is not"),
    "infinite in bfloat16": (changed(B, lambda b: holding(float("-inf"))(b.bfloat16())), "not finite"),
    "infinite in float16": (changed(B, lambda b: holding(float("inf"))(b.half())), "not finite"),
    "integers": (changed(B, lambda b: b.int()), "stored as I32, which is no float"),
    "8-bit floats": (changed(B, lambda b: b.to(torch.float8_e4m3fn)), "stored as F8_E4M3"),
    "DoRA": (with_(f"{Q}.lora_magnitude_vector.default.weight", torch.ones(64)), "DoRA's magnitudes, which is not"),
    "a bias of B": (with_(f"{Q}.lora_B.bias", torch.ones(64)), "LoRA of no linear layer, or a bias of B"),
    "trained tokens": (
        with_(f"{EMBEDDING}.token_adapter.trainable_tokens_delta", torch.ones(2, 64)),
        "trained tokens, which is not served",
    ),
    "LoRA of the embedding": (with_(f"{EMBEDDING}.lora_embedding_A", torch.ones(4, 160)), "LoRA of an embedding"),
    "a trained embedding": (with_(f"{EMBEDDING}.weight", torch.ones(160, 64)), "embed_tokens.weight: differs"),
    "new tokens": (with_(f"{EMBEDDING}.weight", torch.ones(168, 64)), "differs from this model's own"),
    "another base's head": (
        changed("base_model.model.lm_head.base_layer.weight", lambda w: w + 1e-6),
        "lm_head.base_layer.weight: differs",
    ),
    "a trained norm": (with_(f"{INNER}.norm.weight", torch.full((64,), 3.0)), "norm.weight: differs"),
    "the same layer under two names": (
        lambda t: t | {k.replace(INNER, "base_model.model.model"): t[k].clone() for k in (A, B)},
        "another key changes the same layer",
    ),
    "nothing": (lambda t: {}, "it changes nothing"),
    "only a copy of the head": (
        lambda t: {k: v for k, v in t.items() if "base_layer" in k},
        "it changes nothing: there is no tensor in it that acts",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_tensors_that_do_not_fit(case: Case, name: str, tmp_path: Path) -> None:
    change, why = CHANGES[name]
    with pytest.raises(BadAdapter, match=why):
        peft.converted(case.copy(tmp_path / "a", change), case.base)


def test_models_of_one_shape_are_told_apart(case: Case, tmp_path: Path) -> None:
    again = tiny.save(case.theirs, tmp_path / "the same")
    other = tiny.save(tiny.qwen2_vl(), tmp_path / "another")
    assert peft.base_of(again).shape_digest == case.base.shape_digest
    for file in other.glob("*.safetensors"):
        save_file({name: tensor + 0.5 for name, tensor in load_file(file).items()}, file)
    assert peft.base_of(other).shape_digest != case.base.shape_digest


def test_a_convolution(case: Case, tmp_path: Path) -> None:
    model = get_peft_model(tiny.llava(), LoraConfig(r=2, target_modules=["patch_embedding"]))
    model.save_pretrained(tmp_path / "a")
    base = peft.base_of(tiny.save(tiny.llava(), tmp_path / "model"))
    with pytest.raises(BadAdapter, match="are factors of a convolution, which is not served"):
        peft.converted(tmp_path / "a", base)


def test_a_rank_above_the_limit(case: Case) -> None:
    base = peft.base_of(case.directory, rank=3)
    with pytest.raises(
        BadAdapter, match=r"rank 4 in 32 layers; the server takes up to 3 \(--max-lora-rank\)"
    ) as caught:
        peft.converted(case.adapter, base)
    assert len(caught.value.problems) == 1


def test_a_scale_that_no_number_of_the_engine_holds(case: Case, tmp_path: Path) -> None:
    for number, alpha in enumerate((1e41, 1e300)):
        directory = case.copy(tmp_path / str(number), lora_alpha=alpha)
        assert "a number exceeds 3.38e+38" in str(case.refusal(directory))


def test_numbers_that_the_engines_type_cannot_hold(case: Case, tmp_path: Path) -> None:
    base = peft.base_of(case.directory, largest=65504.0)
    directory = case.copy(tmp_path / "a", changed(f"{Q}.lora_B.weight", lambda b: b * 0 + 50000.0))
    with pytest.raises(BadAdapter, match=r"times its scale 1\.5, a number exceeds 65504"):
        peft.converted(directory, base)


def test_a_trained_projector(case: Case, tmp_path: Path) -> None:
    merger = "base_model.model.model.visual.merger.mlp.0.weight"
    other = "base_model.model.model.visual.merger.mlp.9.weight"
    directory = case.copy(tmp_path / "a", with_(merger, torch.ones(3, 3)), modules_to_save=["merger"])
    assert "shape [3, 3], but this model's projector has" in str(case.refusal(directory))
    directory = case.copy(tmp_path / "b", with_(other, torch.ones(3)), modules_to_save=["merger"])
    assert "merger.mlp.9.weight: neither a low-rank factor nor" in str(case.refusal(directory))
    directory = case.copy(tmp_path / "c", modules_to_save=["merger", "lm_head"])
    assert "modules_to_save has 'merger', of which no tensor is in the files" in str(case.refusal(directory))
    trained = case.copy(tmp_path / "d", with_(merger, torch.ones(128, 128)), modules_to_save=["merger"])
    without = peft.base_of(case.directory, projector=False)
    with pytest.raises(BadAdapter, match="a trained projector, for which slots have no room"):
        peft.converted(trained, without)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "it is no adapter: there is neither"),
        ({CONFIG: b"{}"}, "there is no adapter_model.safetensors beside"),
        ({WEIGHTS: b""}, "there is no adapter_config.json beside"),
        ({CONFIG: b"{", WEIGHTS: b""}, "adapter_config.json is not JSON"),
        ({CONFIG: b"[1]", WEIGHTS: b""}, "adapter_config.json holds a list"),
        ({CONFIG: b"\xff", WEIGHTS: b""}, "adapter_config.json is not UTF-8"),
        ({CONFIG: b"{}" + b" " * 2**22, WEIGHTS: b""}, "the limit is 4,194,304"),
        ({CONFIG: b"[" * 10**5, WEIGHTS: b""}, "is not JSON"),
        ({CONFIG: b"{}", WEIGHTS: b""}, "adapter_model.safetensors: "),
        ({CONFIG: b"{}", WEIGHTS: pickle.dumps({"a": 1})}, "adapter_model.safetensors: "),
        ({CONFIG: b"{}", WEIGHTS: (2**62).to_bytes(8, "little")}, "adapter_model.safetensors: "),
        ({CONFIG: b"{}", "adapter_model.bin": b""}, "adapter_model.bin is a pickle, which can run code"),
        ({CONFIG: b"{}", WEIGHTS: b"", "non_lora_trainables.bin": b""}, "non_lora_trainables.bin is a pickle"),
        ({f"default/{CONFIG}": b"{}"}, r"it is no adapter \(default in it is\)"),
        ({"lora.safetensors": b""}, "lora.rank is None"),
        ({"lora.safetensors": b"", "params.json": b'{"lora": 3}'}, "params.json: lora is no object"),
        ({CONFIG: b"{}", WEIGHTS: b"", "opsin_adapter.json": b'{"base": 3}'}, "opsin_adapter.json: "),
    ],
)
def test_files_that_are_no_adapter(case: Case, tmp_path: Path, files: dict[str, bytes], why: str) -> None:
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(BadAdapter, match=why):
        peft.converted(tmp_path, case.base)
    assert str(tmp_path) not in str(case.refusal(tmp_path))


def mutate(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    kind = chance.randrange(5)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at:]
    if kind == 3:
        end = min(len(data), at + chance.randrange(1, 200))
        return data[:at] + data[end:]
    end = min(len(data), at + 8)
    return data[:at] + chance.randbytes(end - at) + data[end:]


@pytest.mark.parametrize("mutations", [150, pytest.param(1000, marks=pytest.mark.nightly)])
def test_mutated_files_are_refused_or_read_whole(case: Case, tmp_path: Path, mutations: int) -> None:
    """Flipped bits of a number make another number, which nobody can tell: all others are refused, in a sentence."""
    original, refused = peft.converted(case.adapter, case.base), 0
    for number in range(mutations):
        chance = random.Random(number)
        name = chance.choice([WEIGHTS, CONFIG])
        directory = tmp_path / str(number)
        directory.mkdir()
        for each in (WEIGHTS, CONFIG):
            data = (case.adapter / each).read_bytes()
            header = 8 + int.from_bytes(data[:8], "little")  # the rest are numbers, most of the file
            if each == name and each == WEIGHTS and chance.random() < 0.8:
                (directory / each).write_bytes(mutate(data[:header], chance) + data[header:])
            else:
                (directory / each).write_bytes(mutate(data, chance) if each == name else data)
        try:
            found = peft.converted(directory, case.base)
        except BadAdapter:
            refused += 1
        else:
            assert found.tensors.keys() == original.tensors.keys(), number
            assert found.tensors_read == original.tensors_read
    assert refused > mutations / 3


@pytest.mark.parametrize(
    ("family", "module", "name", "shape"),
    [
        ("qwen", "attn_pool", "transformer.visual.attn_pool.attn.in_proj_weight", (5, 64)),
        ("qwen", "visual.proj", "transformer.visual.proj", (3, 64)),
        ("mistral3", "multi_modal_projector", "model.multi_modal_projector.patch_merger.merging_layer.weight", (7, 9)),
    ],
)
def test_a_trained_projector_of_another_shape_whose_order_is_the_familys(
    family: str, module: str, name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """It can be neither cut nor reordered as this model's is."""
    theirs = tiny.FAMILIES[family].make()
    base = peft.base_of(tiny.save(theirs, tmp_path / "model"), options=dict(tiny.FAMILIES[family].options))
    targets = peft.linears(theirs, r"(v_proj|c_attn)$")
    directory = peft.make(theirs, tmp_path / "a", 0, r=2, target_modules=targets).directory
    tensors = load_file(directory / WEIGHTS)
    save_file({**tensors, f"base_model.model.{name}": torch.ones(shape)}, directory / WEIGHTS)
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps(config | {"modules_to_save": [module]}))
    with pytest.raises(BadAdapter, match=r"shape|does not fit"):
        peft.converted(directory, base)
