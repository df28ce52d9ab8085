"""GGUFs in several files: all of them are the model, and one that is missing or another's is named."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from opsin_plugins.loading.content_digest import ContentDigest
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.gguf.container import read_container
from opsin_plugins.spec import SpecError
from support import oracle
from support.gguf_files import write_llama


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def parts(model: LlamaForCausalLM, tmp_path: Path) -> list[Path]:
    """As the `gguf` package splits them: seven tensors each."""
    write_llama(tmp_path / "m.gguf", model, {}, tensors_a_part=7)
    found = sorted(tmp_path.glob("m-*.gguf"))
    assert [path.name for path in found] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    return found


def test_parts_are_the_model_that_one_file_is(model: LlamaForCausalLM, parts: list[Path], tmp_path: Path) -> None:
    whole = write_llama(tmp_path / "whole.gguf", model, {})
    logits = []
    for path in (whole, parts[0]):
        ours = oracle.with_declared(path)
        asked = oracle.prompt(ours, list(range(5, 25)), [])
        logits += oracle.our_logits(ours, [asked])
    assert torch.equal(*logits)
    files = read_model_files(parts[0])
    assert {info.file for info in files.tensors.values()} == set(parts)
    assert ContentDigest(files).compute() == ContentDigest(read_model_files(whole)).compute()


def test_another_part_than_the_first_names_the_first(parts: list[Path]) -> None:
    with pytest.raises(SpecError, match=r"part 2 of 3: give the first, .*m-00001-of-00003\.gguf"):
        read_model_files(parts[1])


def test_a_part_that_is_missing_is_named(parts: list[Path]) -> None:
    parts[2].unlink()
    with pytest.raises(SpecError, match=r"part 1 of 3, and part 3 is not there: .*m-00003-of-00003\.gguf"):
        read_model_files(parts[0])


def test_a_part_in_the_place_of_another_is_named(parts: list[Path]) -> None:
    shutil.copy(parts[2], parts[1])
    with pytest.raises(SpecError, match=r"m-00002-of-00003\.gguf says that it is part 3 of 3, where part 2 of 3"):
        read_model_files(parts[0])


def test_a_part_of_another_number_of_parts_is_named(parts: list[Path]) -> None:
    rewrite(parts[1], "split.count", 4)
    with pytest.raises(SpecError, match=r"m-00002-of-00003\.gguf says that it is part 2 of 4, where part 2 of 3"):
        read_model_files(parts[0])


def test_a_file_that_is_no_part_is_named(model: LlamaForCausalLM, parts: list[Path]) -> None:
    write_llama(parts[1], model, {})
    with pytest.raises(SpecError, match=r"m-00002-of-00003\.gguf has no split\.no"):
        read_model_files(parts[0])


def test_parts_are_found_by_their_names(parts: list[Path]) -> None:
    other = parts[0].rename(parts[0].with_name("renamed.gguf"))
    with pytest.raises(SpecError, match=r"renamed\.gguf is one of 3 parts, found by their names"):
        read_model_files(other)


def test_the_number_of_tensors_is_checked(parts: list[Path]) -> None:
    rewrite(parts[0], "split.tensors.count", 22)
    with pytest.raises(SpecError, match=r"should have 22 tensors, and have 21"):
        read_model_files(parts[0])


def test_a_tensor_in_two_parts_is_named(parts: list[Path]) -> None:
    (first, name), other = named(parts[0], "attn_q.weight"), named(parts[1], "attn_q.weight")
    parts[1].write_bytes(parts[1].read_bytes().replace(other[1], name))
    with pytest.raises(SpecError, match=rf"{first} is in both m-00001-of-00003\.gguf and m-00002"):
        read_model_files(parts[0])


def named(path: Path, end: str) -> tuple[str, bytes]:
    """A tensor of a file whose name ends so."""
    name = next(name for name in read_container(path).tensors if name.endswith(end))
    return name, name.encode()


def rewrite(path: Path, key: str, number: int) -> None:
    """A field of the header, u16 or i32, given another number."""
    data = bytearray(path.read_bytes())
    at = data.index(key.encode()) + len(key)
    form = {2: "<H", 5: "<i"}[struct.unpack_from("<I", data, at)[0]]
    struct.pack_into(form, data, at + 4, number)
    path.write_bytes(data)
