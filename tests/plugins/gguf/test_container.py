"""GGUF files that are none, are cut short or lie: a sentence, and nothing else."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader
from transformers import LlamaConfig, LlamaForCausalLM

from opsin_plugins.loading.gguf.container import read_container
from opsin_plugins.loading.open_model import open_model
from opsin_plugins.spec import SpecError
from support.gguf_files import check_mutations, write_llama

MUTATIONS = 500


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4
    )
    return write_llama(tmp_path_factory.mktemp("gguf") / "m.gguf", LlamaForCausalLM(config), {"ffn": Kind.Q4_0})


def test_fields_and_tensors_are_those_of_the_package(file: Path) -> None:
    ours, theirs = read_container(file), GGUFReader(file)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            found = ours.fields[key]
            assert (list(found) if isinstance(found, tuple) else found) == field.contents()
    assert {t.name for t in theirs.tensors} == set(ours.tensors)
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert (mine.kind, list(reversed(mine.shape))) == (tensor.tensor_type.name, tensor.shape.tolist())
        assert (mine.begin, mine.nbytes) == (tensor.data_offset, tensor.n_bytes)


def changed(file: Path, tmp_path: Path, data: bytes) -> Path:
    other = tmp_path / "other.gguf"
    other.write_bytes(data)
    return other


HEAD = b"GGUF" + struct.pack("<I", 3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"GGML", "no GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "byte order"),
        (HEAD, "middle of its header"),
        (HEAD + struct.pack("<QQ", 2**60, 1), "limits"),
        (HEAD + struct.pack("<QQ", 1, 2**60), "limits"),
        (HEAD + struct.pack("<QQQ", 0, 1, 2**63), "a text of"),
        (HEAD + struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 4, 2**60), "an array of"),
        (HEAD + struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 4, 2**21), "middle of its header"),
        (HEAD + struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 9, 1), "array of type 9"),
        (HEAD + struct.pack("<QQQ1sI", 0, 1, 1, b"k", 77), "a value of type 77"),
        (HEAD + struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 1, 2**40, 0, 0), "shape"),
        (HEAD + struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 1, 2**20, 0, 0), "behind the file's end"),
        (HEAD + struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 1, 8, 0, 2**62), "behind the file's end"),
        (HEAD + struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 1, 8, 10, 0), "t is Q2_K, which is not read"),
        (HEAD + struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 1, 8, 2, 0), "no multiple of 32"),
        (HEAD + struct.pack("<QQQ1sI", 1, 0, 1, b"t", 9), "9 dimensions"),
    ],
)
def test_a_lie_is_a_sentence(file: Path, tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        read_container(changed(file, tmp_path, data))


def test_a_sentence_names_the_file_once(file: Path, tmp_path: Path) -> None:
    other = changed(file, tmp_path, file.read_bytes()[:-100])
    with pytest.raises(SpecError, match="behind the file's end") as refused:
        open_model(other)
    assert str(refused.value).count(str(other)) == 1


def test_a_folder_of_gguf_files_is_told_apart(file: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"give one of them, as .*m\.gguf"):
        open_model(file.parent)
    with pytest.raises(SpecError, match="is not there"):
        open_model(tmp_path / "none.gguf")


def test_no_mutation_is_worse_than_a_sentence(file: Path, tmp_path: Path) -> None:
    """Bytes of the header changed, and the file cut anywhere."""
    check_mutations(file, MUTATIONS, lambda data: open_model(changed(file, tmp_path, data)))
