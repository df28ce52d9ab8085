"""Loading: every key accounted for, clear refusals before a weight is read, and little memory beside the weights."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from opsin_plugins.loading.files import read_model_files
from opsin_plugins.spec import SpecError
from support import oracle, tiny


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tiny.save(tiny.qwen2_vl(), tmp_path / "model", shards=1)


def rewrite(directory: Path, change) -> None:
    file = directory / "model-00001-of-00001.safetensors"
    with safe_open(file, framework="pt") as opened:
        state = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    change(state)
    save_file(state, file)
    (directory / "model.safetensors.index.json").unlink(missing_ok=True)


def edit_config(directory: Path, **changes: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    for path, value in changes.items():
        place = config
        *parents, last = path.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    (directory / "config.json").write_text(json.dumps(config))


def test_unmatched_and_missing_keys_are_listed(directory: Path) -> None:
    def change(state):
        state["model.layers.0.self_attn.extra.weight"] = torch.zeros(3)
        del state["model.layers.2.mlp.up_proj.weight"]

    rewrite(directory, change)
    with pytest.raises(SpecError) as failure:
        oracle.load(directory)
    assert "1 keys that nothing takes: model.layers.0.self_attn.extra.weight" in str(failure.value)
    assert "1 weights that no key fills: decoder.layers.2.mlp.gate_up.weight" in str(failure.value)


def test_a_wrong_shape_names_both_shapes(directory: Path) -> None:
    rewrite(directory, lambda state: state.update({"model.norm.weight": torch.zeros(63)}))
    with pytest.raises(SpecError, match=r"model.norm.weight: shape \[\[63\]\], but decoder.norm.weight needs \[64\]"):
        oracle.load(directory)


def test_the_same_weight_twice_is_an_error(directory: Path) -> None:
    rewrite(directory, lambda state: state.update({"model.language_model.norm.weight": torch.zeros(64)}))
    with pytest.raises(SpecError, match="are the same weight"):
        oracle.load(directory)


def test_integers_where_floats_belong_are_refused(directory: Path) -> None:
    rewrite(directory, lambda state: state.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}))
    with pytest.raises(SpecError, match=r"model\.norm\.weight is stored as I8"):
        oracle.load(directory)


def test_a_layer_too_many_is_unmatched(directory: Path) -> None:
    edit_config(directory, text_config__num_hidden_layers=2)
    with pytest.raises(SpecError, match=r"keys that nothing takes: model.layers.2"):
        oracle.load(directory)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "stranger"}, "no architecture plugin claims model_type 'stranger'"),
        ({"model_type": "stranger", "auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"text_config__rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope type 'yarn'"),
        ({"text_config__hidden_act": "swishy"}, "hidden_act 'swishy'"),
        ({"text_config__num_attention_heads": "4"}, "num_attention_heads must be an integer, got '4'"),
        ({"text_config__num_key_value_heads": 3}, "heads 4, key-value heads 3"),
        ({"vision_config__hidden_size": 32}, "gives 32 values"),
        ({"vision_config": 3}, "vision_config must be an object"),
    ],
)
def test_what_cannot_be_served_is_named(directory: Path, changes: dict[str, object], said: str) -> None:
    edit_config(directory, **changes)
    with pytest.raises(SpecError, match=said.replace("(", r"\(")):
        oracle.load(directory)


def test_other_weight_formats_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(SpecError, match=r"pytorch_model.bin: only safetensors are read.*python -c"):
        read_model_files(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_an_index_cannot_point_outside_of_its_folder(directory: Path, name: str) -> None:
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(SpecError, match="which is no file of"):
        read_model_files(directory)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '"text"'])
def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SpecError, match=r"config.json"):
        read_model_files(tmp_path)


MEASURE = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from support import oracle
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.registry import Registry
from opsin_plugins.blocks.model import build_model
from opsin_plugins.blocks.checkpoint import load_weights
import threading, time
def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
registry = Registry()
files = read_model_files(Path(sys.argv[1]))
architecture = registry.architecture(files)
spec = architecture.spec(files)
peak, over = 0, False
def watch():
    global peak
    while not over:
        peak = max(peak, anonymous())
        time.sleep(0.001)
before = anonymous()
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
model = build_model(spec, registry)
load_weights(model, architecture.weights(spec), files)
over = True
watcher.join()
print((peak - before) / sum(p.nbytes for p in model.parameters()))
"""


def test_loading_takes_little_private_memory_beside_the_weights(tmp_path: Path) -> None:
    """In bf16, so that every tensor is converted: a copy of all of it would double the peak."""
    model = tiny.qwen2_vl(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=16,
        vocab_size=20000,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]},
    )
    directory = tiny.save(model.to(torch.bfloat16), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(directory)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
    )
    assert float(done.stdout) < 1.3


def test_the_conversion_that_is_named_works(tmp_path: Path) -> None:
    """On Qwen-VL as it is published: .bin shards, an index, code of its own that is never run."""
    theirs = tiny.FAMILIES["qwen"].make()
    state, names = theirs.state_dict(), sorted(theirs.state_dict())
    for i in range(2):
        shard = {name: state[name] for name in names[i::2]}
        torch.save(shard, tmp_path / f"pytorch_model-{i + 1:05}-of-00002.bin")
    (tmp_path / "config.json").write_text(json.dumps(theirs.config.to_dict()))
    with pytest.raises(SpecError, match="python -c") as refusal:
        read_model_files(tmp_path)
    command = re.search(r'python -c "(.+)"$', str(refusal.value))
    subprocess.run([sys.executable, "-c", command[1]], cwd=tmp_path, check=True)
    ours = oracle.load(tmp_path)
    asked = oracle.prompt(ours, [5, 6, 7], [])
    with torch.no_grad():
        assert (oracle.our_logits(ours, [asked])[0] - oracle.their_logits(theirs, ours, asked)).abs().max() < 1e-4
