"""Merged directories of every family: read by transformers and here, they compute what PEFT does over the base."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from opsin_plugins.blocks.checkpoint import targets
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.linears import linears_of
from opsin_plugins.loading.open_model import open_model
from opsin_plugins.loading.weight_matching import assign
from opsin_server.adapters.convert import Converted
from opsin_server.adapters.tensor_file import read_tensors
from opsin_server.merge import changes as changes_module
from opsin_server.merge.changes import changes_of, merged
from opsin_server.merge.command import Request, merge
from support import adapters, mistral_format, oracle, peft, tiny
from support.oracle import Ours

LIMIT = 1e-4
ASKED = [([5, tiny.IMAGE_TOKEN, 7, 8, 9], (44, 52)), ([4, 3, 11, 12, 13, 14], None)]
# torch computes nn.MultiheadAttention, as of Qwen-VL's resampler, without asking its output layer: PEFT trains none.
LINEARS = r"^(?!.*attn_pool\.attn)"
NO_HEAD = rf"{LINEARS}(?!.*lm_head)"
Save = Callable[[Any, Path], Path]


def one_file(model: Any, directory: Path) -> Path:
    tiny.save(model, directory, shards=1)
    (directory / "model.safetensors.index.json").unlink()
    (directory / "model-00001-of-00001.safetensors").rename(directory / "model.safetensors")
    return directory


def twice(model: Any, directory: Path) -> Path:
    """A tied head that is saved as well."""
    state = tiny.named(model)
    state["lm_head.weight"] = next(t for key, t in state.items() if key.endswith("embed_tokens.weight")).clone()
    return tiny.write(directory, state, {"config.json": model.config.to_dict()})


def mistrals_own(model: Any, directory: Path) -> Path:
    """In the one file that Mistral publishes."""
    directory.mkdir()
    save_file(
        {k: t.contiguous() for k, t in mistral_format.named(model).items()}, directory / "consolidated.safetensors"
    )
    (directory / "params.json").write_text(json.dumps(mistral_format.params(model)))
    return directory


@dataclass(frozen=True)
class Merging:
    """head: the name of a tied head that becomes a tensor of its own. mistrals: the adapter is one of Mistral's own
    names and order of rows."""

    make: Callable[[], Any]
    save: Save = tiny.save
    like: str = LINEARS
    fields: Mapping[str, Any] = field(default_factory=dict)
    head: str = ""
    mistrals: bool = False


def dialect(name: str) -> Save:
    return lambda model, directory: tiny.save(model, directory, name)


PATTERNS = {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {r"layers.1.self_attn.v_proj": 1.5}, "use_rslora": True}
NORM_OF_MISTRAL = {"rms_norm_eps": 1e-5}
CASES = {
    "qwen2_vl": Merging(tiny.qwen2_vl, fields=PATTERNS),
    "qwen2_vl, its projector trained": Merging(
        tiny.qwen2_vl, like=r"^(?!.*merger)", fields={"modules_to_save": ["merger"]}
    ),
    "qwen2_5_vl, tied": Merging(lambda: tiny.qwen2_5_vl(tie=True), like=NO_HEAD),
    "qwen2_5_vl, a tied head changed": Merging(lambda: tiny.qwen2_5_vl(tie=True), head="lm_head.weight"),
    "qwen3_vl": Merging(tiny.qwen3_vl),
    "llava, its last layer left out": Merging(tiny.llava),
    "llava, without the tower's prefix": Merging(tiny.llava, dialect("unprefixed")),
    "llava, today's names, in one file": Merging(
        tiny.llava, lambda model, folder: tiny.save(model, folder, "current", shards=1)
    ),
    "llava, a tied head changed": Merging(
        lambda: tiny.llava(sizes={"tie_word_embeddings": True}, tie_word_embeddings=True),
        head="language_model.lm_head.weight",
    ),
    "llava.pixtral, its projector trained": Merging(
        tiny.pixtral, like=r"^(?!.*multi_modal)", fields={"modules_to_save": ["multi_modal_projector"]}
    ),
    "llava.pixtral, by an adapter in Mistral's names": Merging(tiny.pixtral, mistrals=True),
    "mistral3, its merger trained": Merging(
        tiny.mistral3,
        like=r"^(?!.*(multi_modal|lm_head))",
        fields={"modules_to_save": ["multi_modal_projector"]},
    ),
    "mistral3, a tied head changed, by an adapter in Mistral's names": Merging(
        tiny.mistral3, head="language_model.lm_head.weight", mistrals=True
    ),
    "mistral_params": Merging(lambda: tiny.pixtral(sizes=NORM_OF_MISTRAL), mistrals_own, mistrals=True),
    "mistral_params, a tied head changed": Merging(tiny.mistral3, mistrals_own, head="output.weight", mistrals=True),
    "idefics3": Merging(tiny.idefics3, fields={"modules_to_save": ["connector"]}, like=r"^(?!.*connector)"),
    "idefics3, a tied head changed": Merging(lambda: _tied_idefics(), head="lm_head.weight"),
    "mllama": Merging(tiny.mllama),
    "qwen": Merging(tiny.FAMILIES["qwen"].make, fields=PATTERNS | {"rank_pattern": {"c_attn": 5}}),
    "llama, one file": Merging(lambda: tiny.text_model("llama"), one_file),
    "llama, tied, one file": Merging(
        lambda: tiny.text_model("llama", tie_word_embeddings=True), one_file, head="lm_head.weight"
    ),
    "llama, a tied head saved twice": Merging(
        lambda: tiny.text_model("llama", tie_word_embeddings=True), twice, head="lm_head.weight"
    ),
}


def _tied_idefics() -> Any:
    model = tiny.idefics3(tie_word_embeddings=True)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return model


def stored(directory: Path) -> dict[str, Tensor]:
    return {key: tensor for file in directory.glob("*.safetensors") for key, tensor in load_file(file).items()}


def from_pretrained(model: Any, directory: Path) -> Any:
    """What the published code of a family makes of a directory; None: it reads no such form."""
    if (directory / "params.json").is_file():
        return None
    if not hasattr(model, "from_pretrained"):
        again = copy.deepcopy(model)
        again.load_state_dict(stored(directory))
        return again
    again, loading = type(model).from_pretrained(directory, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    return again.eval()


def check_answers(model: Any, directory: Path, adapter: peft.Peft) -> None:
    """Of `directory`, as transformers and as this server read it."""
    ours = oracle.load(directory, options=dict(tiny.FAMILIES[tiny.family_of(model)].options))
    theirs = from_pretrained(model, directory)
    for asked in prompts(ours):
        expected = adapter.logits(ours, asked)
        (got,) = oracle.our_logits(ours, [asked])
        torch.testing.assert_close(got, expected, atol=LIMIT, rtol=0)
        if theirs is not None:
            torch.testing.assert_close(oracle.their_logits(theirs, ours, asked), expected, atol=LIMIT, rtol=0)


def prompts(ours: Ours) -> list[oracle.Prompt]:
    pictures = ours.spec.vision is not None
    return [
        oracle.prompt(ours, ids, [] if size is None else [oracle.picture(0, *size)])
        for ids, size in ASKED
        if pictures or size is None
    ]


ORDINARY = (
    "qwen2_vl", "qwen2_5_vl, a tied head changed", "llava, its last layer left out", "idefics3", "mllama", "qwen",
    "llava.pixtral, by an adapter in Mistral's names", "mistral_params", "llama, one file",
)  # fmt: skip
NAMES = [pytest.param(name, marks=[] if name in ORDINARY else pytest.mark.nightly) for name in CASES]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_merged_model_computes_what_its_adapter_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = case.make()
    base, out = case.save(model, tmp_path / "base"), tmp_path / "out"
    fields = {"r": 8, "lora_alpha": 12, "target_modules": peft.linears(model, case.like), **case.fields}
    adapter = peft.make(model, tmp_path / "adapter", 0, **fields)
    given = adapter.directory
    if case.mistrals:
        given = mistral_format.save_adapter(given, model.config, tmp_path / "mistrals", 8, 1.5)
    report = merge(Request(base, given, out))
    check_answers(model, out, adapter)
    _check_files(base, out, case.head)
    assert (f"output head    {case.head}," in report) == bool(case.head)
    if not case.head:  # (PEFT merges a tied head into the embedding as well)
        expected = stored(case.save(adapter.model.merge_and_unload(), tmp_path / "merged"))
        found = stored(out)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, atol=1e-5, rtol=1e-5)


def _check_files(base: Path, out: Path, head: str) -> None:
    """Names, types, shapes and every other file are the base's; but for a head that was tied."""
    before, after = read_model_files(base).tensors, read_model_files(out).tensors
    assert after.keys() - before.keys() <= {head}
    assert all((after[key].dtype, after[key].shape) == (before[key].dtype, before[key].shape) for key in before)
    assert all(after[key].file.name == before[key].file.name for key in before)
    assert {path.name for path in base.iterdir()} <= {path.name for path in out.iterdir()}
    for path in base.iterdir():
        if path.suffix == ".safetensors" or path.name.endswith(".index.json"):
            continue
        if head and path.name in ("config.json", "params.json"):
            assert not _says_tied(json.loads((out / path.name).read_text()))
        else:
            assert (out / path.name).read_bytes() == path.read_bytes()


def _says_tied(document: Mapping[str, Any]) -> bool:
    keys = ("tie_word_embeddings", "tied_embeddings")
    inner = any(_says_tied(section) for section in document.values() if isinstance(section, dict))
    return inner or any(document.get(key) for key in keys)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_every_linear_of_every_family_is_merged(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows at a time, as of large tensors. Those that no PEFT trains are among them, as a resampler's attention,
    whose three layers are published as one."""
    monkeypatch.setattr(changes_module, "BLOCK", 2000)
    model = tiny.FAMILIES[family].make()
    base = tiny.save(model, tmp_path / "base")
    expected, opened = oracle.load(base), open_model(base)
    adapter = adapters.random(expected, 4, 0)
    tensors, _ = read_tensors(Path(adapters.write(tmp_path / "adapter", adapter).path))
    adapters.merge(expected, adapter)
    shapes = {name: place.shape for name, place in targets(expected.model).items()}
    plan = assign(opened.files.tensors, opened.architecture.weights(opened.spec), shapes)
    converted = Converted(tensors, {}, 4, {}, 0, len(tensors), ())
    changes = changes_of(converted, plan, linears_of(opened.spec, opened.registry), opened.files.tensors)
    state = {key: merged(tensor, changes.get(key, ())) for key, tensor in stored(base).items()}
    (tmp_path / "out").mkdir()
    for path in base.glob("*.json"):
        (tmp_path / "out" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "out/model.safetensors.index.json").unlink()
    save_file(state, tmp_path / "out/model.safetensors")
    found = oracle.load(tmp_path / "out").model.state_dict()
    for name, tensor in expected.model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-5)
