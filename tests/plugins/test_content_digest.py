"""A model's content digest: the same for the same content, wherever and in whatever files; another for any other."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from opsin_plugins.loading.content_digest import CHUNK_BYTES, ContentDigest, fingerprint
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.weight_files import INDEX, read_extents, read_header
from opsin_plugins.spec import SpecError
from support import tiny

Tensors = Mapping[str, np.ndarray[Any, Any]]
CONFIG = {
    "_name_or_path": "/home/someone/model",
    "model_type": "llava",
    "rope_theta": 10000.0,
    "text_config": {"hidden_size": 64, "torch_dtype": "bfloat16", "layers": [1, 2]},
    "quantization_config": {"quant_method": "gptq", "dtype": "int32"},
    "transformers_version": "4.50.0",
}


def digest(directory: Path) -> str:
    return ContentDigest(read_model_files(directory)).compute()


def write(directory: Path, shards: Sequence[Tensors], config: Mapping[str, object] = CONFIG) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(shards):
        save_file(dict(shard), directory / f"part-{number}.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A Qwen2-VL in two shards with an index."""
    return tiny.save(tiny.FAMILIES["qwen2_vl"].make(), tmp_path / "model")


def weights(directory: Path) -> dict[str, Any]:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


# ----------------------------------------------------------------------------------------------- the same model


def test_it_has_one_form_and_no_machine_in_it(tmp_path: Path) -> None:
    """As docs/reference.md describes it. What adapters name their base by changes with FORMAT alone."""
    x, nothing = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(0)
    hashes = [hashlib.sha256(array.tobytes()).hexdigest() for array in (x, nothing)]
    settings = (
        '{"config":{"model_type":"llava","quantization_config":{"dtype":"int32","quant_method":"gptq"},'
        '"rope_theta":10000,"text_config":{"hidden_size":64,"layers":[1,2]}},"preprocessor":null}'
    )
    lines = [
        '"opsin model 1"',
        settings,
        f'["x","F32",[2,3],"{hashes[0]}"]',
        f'["\\u00e4","F64",[0],"{hashes[1]}"]',
        "",
    ]
    expected = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest(write(tmp_path, [{"ä": nothing}, {"x": x}])) == f"sha256:{expected}"


def test_a_copy_and_what_was_moved_touched_or_linked_is_the_same(directory: Path, tmp_path: Path) -> None:
    known = digest(directory)
    name = fingerprint(read_model_files(directory), "1")
    copy = Path(shutil.copytree(directory, tmp_path / "copy", copy_function=shutil.copyfile))
    for path in copy.iterdir():
        os.utime(path, (1, 1))
    moved = directory.rename(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(moved)
    for place in (copy, moved, tmp_path / "link"):
        assert digest(place) == known
        assert fingerprint(read_model_files(place), "1") == name


def test_the_hubs_cache_is_the_same(directory: Path, tmp_path: Path) -> None:
    """Its snapshots are links to files that are named after their content."""
    known, entry = digest(directory), tmp_path / "models--Qwen--tiny"
    snapshot, blobs = entry / "snapshots" / "0123", entry / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(directory.iterdir())):
        path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    assert digest(snapshot) == known


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_a_model_in_other_shards_is_the_same(directory: Path, tmp_path: Path, shards: int) -> None:
    state, other = weights(directory), tmp_path / "other"
    shutil.copytree(directory, other, ignore=shutil.ignore_patterns("model*"))
    names = sorted(state, reverse=True)
    for number in range(shards):
        file = other / f"model-{number + 1:05}-of-{shards:05}.safetensors"
        save_file({name: state[name] for name in names[number::shards]}, file, metadata={"made": str(number)})
    assert not (other / INDEX).exists()
    assert digest(other) == digest(directory)


def test_what_belongs_to_the_directory_alone_does_not_count(directory: Path) -> None:
    known, name = digest(directory), fingerprint(read_model_files(directory), "1")

    def rewritten(config: dict[str, Any]) -> None:
        config |= {"_name_or_path": "/elsewhere", "transformers_version": "9", "torch_dtype": "float16"}
        config["text_config"]["dtype"] = "float16"

    edit(directory / "config.json", rewritten)
    edit(directory / "config.json", lambda config: config.update(dict(reversed([*config.items()]))))
    for beside in ("chat_template.jinja", "README.md", "adapter_model.safetensors", "pytorch_model.bin"):
        (directory / beside).write_text("anything")
    (directory / "generation_config.json").write_text('{"temperature": 0.1}')
    (directory / "tokenizer_config.json").write_text('{"padding_side": "left"}')
    assert digest(directory) == known
    assert fingerprint(read_model_files(directory), "1") == name


def test_numbers_are_what_they_are_worth(tmp_path: Path) -> None:
    one = write(tmp_path / "one", [{"x": np.zeros(1)}], {"theta": 10000.0, "eps": 1e-6, "sizes": [336.0]})
    two = write(tmp_path / "two", [{"x": np.zeros(1)}], {"sizes": [336], "eps": 0.000001, "theta": 10000})
    assert digest(one) == digest(two)
    third = write(tmp_path / "three", [{"x": np.zeros(1)}], {"sizes": [336], "eps": 0.00001, "theta": 10000})
    assert digest(third) != digest(one)


# ----------------------------------------------------------------------------------------------- another model


def test_one_flipped_bit_of_any_tensor_is_another_model(directory: Path) -> None:
    seen, edits, model = {digest(directory)}, 0, fingerprint(read_model_files(directory), "1")
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as opened:
            extents = read_extents(opened)
        for extent in list(extents.values())[::5]:
            data = bytearray(path.read_bytes())
            data[(extent.begin + extent.end) // 2] ^= 4
            path.write_bytes(data)
            seen.add(digest(directory))
            edits += 1
    assert len(seen) == edits + 1
    assert fingerprint(read_model_files(directory), "1") == model  # (of headers alone)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["text_config"].update(rms_norm_eps=1e-3),
        lambda config: config["vision_config"].pop("depth"),
        lambda config: config.update(more=None),
        lambda config: config.update(quantization_config={"quant_method": "awq", "bits": 4}),
    ],
)
def test_a_changed_configuration_is_another_model(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    known, name = digest(directory), fingerprint(read_model_files(directory), "1")
    edit(directory / "config.json", change)
    assert digest(directory) != known
    assert fingerprint(read_model_files(directory), "1") != name


def test_pictures_prepared_in_another_way_are_another_model(directory: Path) -> None:
    known = digest(directory)
    edit(directory / "preprocessor_config.json", lambda settings: settings.update(image_mean=[0.0, 0.0, 0.0]))
    assert digest(directory) != known
    (directory / "preprocessor_config.json").unlink()
    assert digest(directory) != known


def test_what_says_how_bytes_are_read_counts_within_a_quantization(tmp_path: Path) -> None:
    one = write(tmp_path / "one", [{"x": np.zeros(1)}])
    other = {**CONFIG, "quantization_config": {"quant_method": "gptq", "dtype": "int8"}}
    assert digest(write(tmp_path / "two", [{"x": np.zeros(1)}], other)) != digest(one)


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.zeros((2, 3), np.float32)},
        {"x": np.zeros((3, 2), np.float32)},
        {"x": np.zeros((2, 3), np.int32)},
        {"x": np.zeros((2, 3), np.float32), "y": np.zeros(0)},
        {"x": np.zeros((2, 3), np.float32), "x\n": np.zeros(0)},
    ],
)
def test_names_types_and_shapes_count(tmp_path: Path, other: Tensors) -> None:
    one = write(tmp_path / "one", [{"x": np.zeros((2, 3), np.float32)}])
    two = write(tmp_path / "two", [other])
    assert digest(one) != digest(two)
    assert fingerprint(read_model_files(one), "1") != fingerprint(read_model_files(two), "1")


def test_a_fingerprint_is_of_a_version(directory: Path) -> None:
    files = read_model_files(directory)
    assert fingerprint(files, "1") != fingerprint(files, "2")


# ----------------------------------------------------------------------------------------------- any model

ARRAYS = st.tuples(
    st.sampled_from(["f4", "f2", "i8", "u1", "?"]), st.lists(st.integers(0, 3), max_size=3), st.binary(max_size=8)
)
STATES = st.dictionaries(st.text(max_size=12).filter(lambda name: name != "__metadata__"), ARRAYS, min_size=1)


def array(drawn: tuple[str, list[int], bytes]) -> np.ndarray[Any, Any]:
    dtype, shape, content = drawn
    raw = np.resize(np.frombuffer(content or b"\0", np.uint8), int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return (raw % 2 if dtype == "?" else raw).view(dtype).reshape(shape)


@settings(deadline=None, max_examples=60)
@given(st.data(), STATES)
def test_equal_content_has_equal_digests_and_other_content_another(data: st.DataObject, drawn: dict[str, Any]) -> None:
    state = {name: array(one) for name, one in drawn.items()}

    def spread() -> list[Tensors]:
        names = data.draw(st.permutations(sorted(state)))
        places = [data.draw(st.integers(0, 3)) for _ in names]
        shards = [{n: state[n] for n, at in zip(names, places, strict=True) if at == place} for place in range(4)]
        return [shard for shard in shards if shard]

    with TemporaryDirectory() as folder:
        one = digest(write(Path(folder) / "one", spread()))
        assert digest(write(Path(folder) / "two", spread())) == one
        victim = data.draw(st.sampled_from(sorted(state)))
        if state[victim].size:
            raw = bytearray(state[victim].tobytes())
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1
            state[victim] = np.frombuffer(bytes(raw), state[victim].dtype).reshape(state[victim].shape)
        else:
            del state[victim]
            state["another"] = np.zeros(1)
        assert digest(write(Path(folder) / "three", spread())) != one


def test_the_header_and_the_library_agree_on_every_type(tmp_path: Path) -> None:
    """A digest holds a type's name as the library gives it, and the bytes as the header has them."""
    sizes = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
    sizes |= {"I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}
    header, at = {}, 0
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        header[name] = {"dtype": name, "shape": [3, 1], "data_offsets": [at, at + 3 * size]}
        at += 3 * size
    raw = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(at))
    (tmp_path / "config.json").write_text("{}")
    with file.open("rb") as opened:
        extents = read_extents(opened)
    assert {k: info.dtype for k, info in read_header(file).items()} == {k: e.dtype for k, e in extents.items()}
    assert digest(tmp_path).startswith("sha256:")


# ----------------------------------------------------------------------------------------------- while it is read


def test_a_tensor_is_read_in_pieces_and_may_be_left_between_them(tmp_path: Path) -> None:
    big = {"x": np.zeros(3 * CHUNK_BYTES + 1, np.uint8)}
    content = ContentDigest(read_model_files(write(tmp_path / "model", [big])))
    pieces: list[None] = []
    known = content.compute(lambda: pieces.append(None))
    assert len(pieces) == 4

    def leave() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        content.compute(leave)
    assert content.compute() == known == content.known()


@pytest.mark.parametrize("when", ["before", "between"])
@pytest.mark.parametrize("how", ["edited", "replaced", "cut off", "another header"])
def test_a_file_that_changes_meanwhile_has_no_digest(tmp_path: Path, when: str, how: str) -> None:
    big = {"x": np.zeros(2 * CHUNK_BYTES, np.uint8)}
    content = ContentDigest(read_model_files(write(tmp_path / "model", [big])))
    file = tmp_path / "model" / "part-0.safetensors"
    time.sleep(0.02)  # past the tick of the file system's clock

    def change() -> None:
        if how == "replaced":
            save_file({"x": big["x"] + 1}, file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)
        elif how == "cut off":
            os.truncate(file, CHUNK_BYTES)
        elif how == "another header":
            save_file({"x": big["x"].view(np.int8)}, file)
        else:
            with file.open("r+b") as opened:
                opened.seek(-1, os.SEEK_END)
                opened.write(b"\1")

    if when == "before":
        change()
    with pytest.raises(SpecError, match="has changed since the model was opened"):
        content.compute(change if when == "between" else lambda: None)


def test_a_header_that_changed_before_the_files_were_looked_at_is_seen(tmp_path: Path) -> None:
    files = read_model_files(write(tmp_path / "model", [{"x": np.zeros(4, np.float32)}]))
    write(tmp_path / "model", [{"x": np.zeros(4, np.int32)}])
    with pytest.raises(SpecError, match="has changed since"):
        ContentDigest(files).compute()
    (tmp_path / "model" / "part-0.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0[]")
    with pytest.raises(SpecError, match="its header cannot be read"):
        ContentDigest(files).compute()


def test_a_configuration_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    """Whichever of reading it, looking through it and writing it gives up first."""
    write(tmp_path, [{"x": np.zeros(1)}])
    for depth in (900, 1000, 5000, 50_000):
        (tmp_path / "config.json").write_text('{"a": ' + "[" * depth + "]" * depth + "}")
        try:
            fingerprint(read_model_files(tmp_path), "1")
        except SpecError as error:
            assert "nested too deeply" in str(error) or "is not JSON" in str(error)  # noqa: PT017
        else:
            assert depth < 1000
