"""What a merged directory holds beside its weights, and how the weights are rounded and stored."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from opsin_server.merge.changes import merged
from opsin_server.merge.command import Request, merge
from support import peft, tiny
from support.served import OPSIN

KEPT = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE", "README.md", "modeling_x.py")
LEFT = ("pytorch_model.bin", "flax_model.msgpack", "training_args.bin", "scores.pkl", "optimizer.safetensors")
HIDDEN = (".gitattributes", ".opsin-digest.json")


class Case:
    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, **fields: object) -> None:
        self.model = tiny.text_model("llama").to(dtype)
        self.base = tiny.save(self.model, folder / "base")
        self.out = folder / "out"
        fields = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **fields}
        self.adapter = peft.make(tiny.text_model("llama"), folder / "adapter", 0, **fields)

    def merged(self) -> str:
        return merge(Request(self.base, self.adapter.directory, self.out))


def test_all_that_a_model_needs_comes_along_and_nothing_else(tmp_path: Path) -> None:
    case = Case(tmp_path)
    for name in (*KEPT, *LEFT, *HIDDEN):
        (case.base / name).write_text(f"this is {name}")
    for name in ("tokenizer_config.json", ".opsin-digest.json"):
        (case.base / name).write_text("{}")
    save_file({"x": torch.zeros(1)}, case.base / "optimizer.safetensors")
    (case.base / "chat_templates").mkdir()
    (case.base / "chat_templates/tool.jinja").write_text("tools")
    (case.base / "adapter_config.json").write_text("{}")
    (case.base / "pytorch_model.bin.index.json").write_text("{}")
    (case.base / "checkpoint-10").mkdir()
    report = case.merged()
    names = {str(path.relative_to(case.out)) for path in case.out.rglob("*") if path.is_file()}
    weights = {path.name for path in case.base.glob("model*")}
    assert names == {*KEPT, *weights, "config.json", "chat_templates/tool.jinja"}
    assert all((case.out / name).read_bytes() == (case.base / name).read_bytes() for name in names - weights)
    assert f"left behind    {', '.join(sorted({*LEFT, 'adapter_config.json', 'checkpoint-10'}))}\n" in report


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_each_weight_is_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    case = Case(tmp_path, dtype)
    case.merged()
    factors = load_file(case.adapter.directory / "adapter_model.safetensors")
    before, after = (_stored(directory) for directory in (case.base, case.out))
    changed = 0
    for key, tensor in after.items():
        assert tensor.dtype == dtype
        a, b = (factors.get(f"base_model.model.{key.removesuffix('weight')}lora_{half}.weight") for half in "AB")
        if a is None or b is None:
            assert torch.equal(tensor, before[key])
            continue
        exact = before[key].double() + 1.5 * b.double() @ a.double()
        assert (tensor != exact.to(dtype)).float().mean() < 1e-3  # (a tie in float32, rounded the other way)
        torch.testing.assert_close(tensor, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
        changed += 1
    assert changed == 6


def _stored(directory: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for file in directory.glob("*.safetensors") for key, tensor in load_file(file).items()}


def test_tensors_of_other_types_and_the_files_metadata_stay(tmp_path: Path) -> None:
    """Old checkpoints hold buffers; in a file every tensor stands aligned, the widest types first."""
    case = Case(tmp_path)
    file = next(case.base.glob("model-00001*"))
    odd = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.rand(8).double() for i in range(2)}
    save_file({**load_file(file), **odd}, file, metadata={"format": "pt", "of": "somebody"})
    (case.base / "model.safetensors.index.json").unlink()
    case.merged()
    found = load_file(case.out / file.name)
    assert all(torch.equal(found[key], tensor) for key, tensor in odd.items())
    with safe_open(case.out / file.name, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "of": "somebody"}
    index = json.loads((case.out / "model.safetensors.index.json").read_text())
    stored = _stored(case.out)
    assert index["weight_map"].keys() == stored.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())


def test_a_rank_that_no_slot_would_take(tmp_path: Path) -> None:
    case = Case(tmp_path, r=600)
    assert "of rank 600 at most" in case.merged()


def test_the_same_merge_writes_the_same_bytes(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.merged()
    merge(Request(case.base, case.adapter.directory, tmp_path / "again"))
    for file in case.out.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_a_stored_tensor_is_not_written_over() -> None:
    stored = torch.ones(2, 2)
    assert merged(stored, ()) is not stored


def test_the_command(tmp_path: Path) -> None:
    case = Case(tmp_path)
    command = [OPSIN, "merge", case.base, case.adapter.directory, case.out]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"written        {case.out}\nchanged        6 of 30 tensors\n")
    assert done.stdout.endswith(f"\nopsin serve {case.out}\n")
