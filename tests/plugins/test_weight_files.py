"""Directories as people have them: which files are read, which are named and ignored, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.registry import Registry
from opsin_plugins.loading.weight_files import INDEX
from opsin_plugins.spec import SpecError
from support import oracle, tiny

Ids = list[int]
GARBAGE = {"x": torch.zeros(2)}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two shards and their index."""
    return tiny.save(tiny.FAMILIES["qwen2_vl"].make(), tmp_path / "model")


def keys(directory: Path) -> set[str]:
    return set(read_model_files(directory).tensors)


def single(directory: Path) -> Path:
    """The same weights in one file, without an index."""
    state = {k: v for shard in sorted(directory.glob("model-*")) for k, v in load_file(shard).items()}
    for shard in directory.glob("model-*"):
        shard.unlink()
    (directory / INDEX).unlink()
    save_file(state, directory / "model.safetensors")
    return directory


def beside(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith(".safetensors"):
            save_file(GARBAGE, path)
        else:
            path.write_bytes(b"anything")


OTHERS = [
    "consolidated.safetensors",
    "consolidated-00001-of-00002.safetensors",
    "adapter_model.safetensors",
    "optimizer.safetensors",
    "pytorch_model.bin",
]
UNLISTED = ["original/consolidated.00.pth", "onnx/model.safetensors", "scheduler.json", ".DS_Store"]


@pytest.mark.parametrize("form", ["sharded", "single", "shards without an index"])
def test_what_stands_beside_the_weights_is_named_and_ignored(directory: Path, form: str) -> None:
    if form == "single":
        single(directory)
    elif form == "shards without an index":
        (directory / INDEX).unlink()
    known = keys(directory)
    beside(directory, *OTHERS, *UNLISTED)
    (directory / "._model-00001-of-00002.safetensors").write_bytes(b"\0\5\26\7Mac OS X")  # AppleDouble
    files = read_model_files(directory)
    assert set(files.tensors) == known
    assert set(files.ignored) == {*OTHERS, "._model-00001-of-00002.safetensors"}
    Registry().architecture(files).spec(files)


def test_an_old_index_does_not_count_where_its_shards_are_gone(directory: Path) -> None:
    """As after `save_pretrained` of a smaller model into the same directory: transformers reads the single file."""
    index = (directory / INDEX).read_text()
    single(directory)
    known = keys(directory)
    (directory / INDEX).write_text(index)
    assert keys(directory) == known
    AutoModelForImageTextToText.from_pretrained(directory)


def test_old_shards_beside_an_index_of_new_ones_are_ignored(directory: Path) -> None:
    known = keys(directory)
    beside(directory, "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors")
    assert keys(directory) == known
    (directory / INDEX).unlink()
    assert keys(directory) == known  # the one complete set


def test_the_index_decides_where_a_tensor_stands_twice(directory: Path) -> None:
    index = json.loads((directory / INDEX).read_text())["weight_map"]
    key, owner = next(iter(index.items()))
    other = next(path for path in directory.glob("model-*") if path.name != owner)
    save_file({**load_file(other), key: torch.zeros(1)}, other)
    assert read_model_files(directory).tensors[key].file.name == owner


def test_true_ambiguity_is_refused(directory: Path) -> None:
    """transformers reads the single file, vLLM the shards."""
    beside(directory, "model.safetensors")
    with pytest.raises(SpecError, match=r"model.safetensors beside the 2 shards .* remove those"):
        read_model_files(directory)


def test_a_copy_of_the_shards_in_one_file_is_no_ambiguity(directory: Path) -> None:
    index = json.loads((directory / INDEX).read_text())["weight_map"]
    whole = {key: tensor for name in set(index.values()) for key, tensor in load_file(directory / name).items()}
    save_file(whole, directory / "model.safetensors")
    found = read_model_files(directory)
    assert {info.file.name for info in found.tensors.values()} == set(index.values())
    assert "model.safetensors" in found.ignored
    key = next(key for key, tensor in whole.items() if tensor.is_floating_point())
    save_file({**whole, key: whole[key] + 1}, directory / "model.safetensors")
    with pytest.raises(SpecError, match="remove those"):
        read_model_files(directory)


def test_mistrals_weights_beside_another_forms_configuration_are_named(directory: Path) -> None:
    for path in [*directory.glob("model*")]:
        path.unlink()
    save_file(GARBAGE, directory / "consolidated.safetensors")
    with pytest.raises(SpecError, match=r"has consolidated\.safetensors, of Mistral's own form, and no params\.json"):
        read_model_files(directory)


def test_two_complete_sets_are_refused(directory: Path) -> None:
    (directory / INDEX).unlink()
    beside(directory, "model-00001-of-00001.safetensors")
    with pytest.raises(SpecError, match="2 sets of shards"):
        read_model_files(directory)


@pytest.mark.parametrize("index", [True, False])
def test_a_download_that_is_not_complete_is_named(directory: Path, index: bool) -> None:
    (directory / "model-00002-of-00002.safetensors").unlink()
    if not index:
        (directory / INDEX).unlink()
    with pytest.raises(SpecError, match="is the download complete"):
        read_model_files(directory)


def test_an_index_that_names_what_is_not_there(directory: Path) -> None:
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"]["model.more.weight"] = "model-00001-of-00002.safetensors"
    (directory / INDEX).write_text(json.dumps(index))
    with pytest.raises(SpecError, match=r"model\.more\.weight is in model-00001"):
        read_model_files(directory)


def test_other_things_that_people_give_are_named(directory: Path, tmp_path: Path) -> None:
    pointer = single(directory) / "model.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(SpecError, match="git lfs pull"):
        read_model_files(directory)
    pointer.unlink()
    beside(directory, "adapter_config.json", "adapter_model.safetensors")
    with pytest.raises(SpecError, match="is an adapter, not a model"):
        read_model_files(directory)
    entry = tmp_path / "models--Qwen--Qwen2-VL"
    shutil.copytree(directory, entry / "snapshots" / "0123")
    with pytest.raises(SpecError, match=r"an entry of the Hub's cache: give its snapshot, .*snapshots/0123"):
        read_model_files(entry)
    shutil.copytree(directory, entry / "snapshots" / "4567")
    (entry / "refs").mkdir()
    for commit in ("0123", "4567"):
        (entry / "refs" / "main").write_text(commit)
        with pytest.raises(SpecError, match=f"snapshots/{commit}$"):
            read_model_files(entry)


# ------------------------------------------------------------------------------------------ the output head


def greedy(directory: Path) -> Ids:
    theirs, ours = AutoModelForImageTextToText.from_pretrained(directory), oracle.load(directory)
    asked = oracle.prompt(ours, [5, 6, 7, 8], [])
    (logits,) = oracle.our_logits(ours, [asked])
    assert (logits - oracle.their_logits(theirs, ours, asked)).abs().max() < 1e-4
    return logits.argmax(-1).tolist()


def flags(directory: Path, top: bool | None, text: bool | None) -> None:
    config = json.loads((directory / "config.json").read_text())
    for place, value in ((config, top), (config["text_config"], text)):
        place.pop("tie_word_embeddings", None)
        if value is not None:
            place["tie_word_embeddings"] = value
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("top", [None, True, False])
@pytest.mark.parametrize("text", [None, True, False])
@pytest.mark.parametrize("stored", ["another head", "the embedding again", "none"])
def test_the_files_are_believed_over_the_flags(
    tmp_path: Path, top: bool | None, text: bool | None, stored: str
) -> None:
    """A head of its own that is stored is read, whatever the configuration says; transformers' logits decide."""
    directory = single(tiny.save(tiny.FAMILIES["qwen2_vl"].make(), tmp_path))
    file = directory / "model.safetensors"
    state = load_file(file)
    embedding = state["model.embed_tokens.weight"]
    if stored == "none":
        del state["lm_head.weight"]
    elif stored == "the embedding again":
        state["lm_head.weight"] = embedding.clone()
    save_file(state, file, metadata={"format": "pt"})
    flags(directory, top, text)
    tied = oracle.load(directory).spec.decoder.tied
    if stored == "none":
        assert tied  # (transformers draws a head at random where no flag says so)
        if top or text:
            greedy(directory)
        return
    assert tied is (stored == "the embedding again" and bool(top or text))
    greedy(directory)


def test_a_path_that_the_library_cannot_open(directory: Path) -> None:
    """It would read the headers of such a path, and fail at the weights."""
    odd = directory.rename(directory.parent / os.fsdecode(b"f\xf6lder"))
    with pytest.raises(SpecError, match="opens no path that is not UTF-8: rename it"):
        read_model_files(odd)
