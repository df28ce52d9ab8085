"""`opsin check`: what a directory would take, from headers alone, and the verdict."""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from opsin_plugins.loading import digest_store
from opsin_plugins.loading.content_digest import ContentDigest
from opsin_plugins.loading.files import read_model_files
from opsin_server.cli import app
from support import published, tiny

GIB = 2**30


def sparse(name: str, directory: Path, **changes: object) -> Path:
    """A published model with true headers and no bytes behind them: whoever reads a weight reads zeros for hours."""
    header: dict[str, object] = {}
    at = 0
    for key, info in published.tensors(name).items():
        size = 2 * math.prod(info.shape)
        header[key] = {"dtype": "BF16", "shape": list(info.shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)
    source = published.CONFIGS / name
    config = json.loads((source / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "preprocessor_config.json").write_text((source / "preprocessor_config.json").read_text())
    write_tokenizer(directory, int(config.get("image_token_id", config.get("image_token_index", 3))))
    return directory


def write_tokenizer(directory: Path, image_token: int) -> None:
    """Three words, one of which stands for a picture."""
    vocab = {"a": 0, "b": 1, "<image>": image_token}
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "a"}
    document = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "decoder": None}
    (directory / "tokenizer.json").write_text(json.dumps(document | {"post_processor": None, "model": model}))


def check(directory: Path, *flags: str) -> Result:
    return CliRunner().invoke(app, ["check", str(directory), *flags])


def test_a_model_that_serves(tmp_path: Path) -> None:
    found = check(sparse("Llama-3.2-11B-Vision-Instruct", tmp_path), "--gpu", "24GiB")
    assert found.exit_code == 0
    for said in (
        "not known yet: --digest reads 19.9 GiB for it",
        "mllama: 10,670,220,835 parameters, 906 tensors, each with its place",
        "19.9 GiB as bfloat16; 23.5 GiB are free",
        "125.0 MiB of keys and values",
        "6,404 visual tokens, 200.1 MiB of keys and values",
        "  742.0 MiB  cross-attention keys and values",
        "  327.2 MiB  largest encode",
        "serves: context 10,288 of the model's 131,072, 3 of the largest images at once",
    ):
        assert said in found.output, found.output


def test_the_digest_is_printed_where_it_costs_nothing_or_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest_store, "SETTLED_NS", 0)
    directory = tiny.save(tiny.FAMILIES["llama"].make(), tmp_path / "model")
    write_tokenizer(directory, 3)
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    digest = ContentDigest(read_model_files(directory)).compute()
    assert f"digest         {digest}\n" in check(directory).output
    monkeypatch.setattr("opsin_plugins.loading.content_digest.SMALL_BYTES", 0)
    assert re.search(
        r"^digest +not known yet: --digest reads [\d.]+ KiB for it$", check(directory).output, re.MULTILINE
    )
    assert not (directory / digest_store.NAME).exists()
    for flags in (("--digest",), ()):
        assert f"digest         {digest}\n" in check(directory, *flags).output
    assert (directory / digest_store.NAME).exists()


def test_one_that_does_not_fit_and_the_flag_that_helps(tmp_path: Path) -> None:
    directory = sparse("Qwen2-VL-7B-Instruct", tmp_path)
    found = check(directory, "--gpu", "12GiB")
    assert found.exit_code == 1
    assert "does not fit: the weights need 16,582,757,092 bytes as bfloat16" in found.output
    assert "4,234,726,116 too few. With --quantization int8 they need 9,518,641,892: which fits" in found.output
    assert (
        "serves: context 12,960 of the model's 32,768, 3 of"
        in check(directory, "--gpu", "12GiB", "--quantization", "int8").output
    )
    assert "still" in check(directory, "--gpu", "6GiB").output


def test_adapters_have_room_unless_nobody_wants_it(tmp_path: Path) -> None:
    directory = sparse("Llama-3.2-11B-Vision-Instruct", tmp_path)
    assert "adapters       1 at once, of rank 16 at most (192.5 MiB)" in check(directory, "--gpu", "24GiB").output
    none = check(directory, "--gpu", "24GiB", "--max-loras", "0").output
    assert "adapters       none" in none
    assert "serves: context 12,928" in none
    large = check(directory, "--gpu", "80GiB", "--max-lora-rank", "64").output
    assert "adapters       8 at once, of rank 64 at most" in large
    without = check(directory, "--gpu", "80GiB", "--no-lora-projectors").output
    assert "without projectors of their own" in without
    assert "--max-cpu-loras 0" in check(directory, "--gpu", "24GiB", "--max-cpu-loras", "0").output


def test_fewer_image_tokens_make_the_largest_image_smaller(tmp_path: Path) -> None:
    directory = sparse("Qwen2-VL-7B-Instruct", tmp_path)
    assert "8,100 visual tokens" in check(directory, "--gpu", "24GiB").output
    assert "961 visual tokens" in check(directory, "--gpu", "24GiB", "--max-image-tokens", "1000").output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 27}, "keys that nothing takes: model.layers.27."),
        ({"num_hidden_layers": 29}, "weights that no key fills: decoder.layers.28."),
        ({"hidden_size": 3600}, "the tower gives 3584 values a visual token, the decoder takes 3600"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "quantized as 'aqlm', which is not read; there are awq"),
        ({"model_type": "unheard_of"}, "no architecture plugin claims model_type 'unheard_of'"),
    ],
)
def test_what_is_wrong_is_said_with_its_names(tmp_path: Path, change: dict[str, object], said: str) -> None:
    found = check(sparse("Qwen2-VL-7B-Instruct", tmp_path, **change), "--gpu", "24GiB")
    assert found.exit_code == 1
    assert said in str(found.exception)


def test_what_only_a_prompt_needs_is_looked_at_too(tmp_path: Path) -> None:
    directory = sparse("Qwen2-VL-7B-Instruct", tmp_path)
    for name, text, said in (
        ("chat_template.jinja", "{% for %}", "does not compile"),
        ("tokenizer.json", "{}", "tokenizer.json"),
    ):
        (directory / name).write_text(text)
        found = check(directory, "--gpu", "24GiB")
        assert found.exit_code == 1
        assert said in str(found.exception)
    (directory / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in str(check(directory, "--gpu", "24GiB").exception)


GARBAGE = [
    ("num_hidden_layers", 10**9, "num_hidden_layers 1000000000 is too large"),
    ("num_attention_heads", 0, "num_attention_heads must be at least 1, got 0"),
    ("vocab_size", -1, "vocab_size must be at least 1, got -1"),
    ("rms_norm_eps", float("nan"), "rms_norm_eps must be a finite number"),
    ("max_position_embeddings", 0, "max_position_embeddings must be at least 1"),
    ("image_token_id", 10**9, "image token 1000000000 is outside of the 152064 embeddings"),
    ("rope_scaling", [1, 2], "rope_scaling must be an object"),
    ("quantization_config", "gptq", "quantization_config is 'gptq', which is no object"),
    ("vision_config", {"depth": 10**8}, "depth 100000000 is too large"),
    ("vision_config", {"patch_size": -4}, "patch_size must be at least 1"),
    ("vision_config", {"num_heads": 0}, "num_heads must be at least 1"),
]


@pytest.mark.parametrize(("key", "value", "said"), GARBAGE)
def test_garbage_in_a_configuration_is_named_at_once(tmp_path: Path, key: str, value: object, said: str) -> None:
    directory = sparse("Qwen2-VL-7B-Instruct", tmp_path)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config[key] = config[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    found = check(directory, "--gpu", "24GiB")
    assert found.exit_code == 1
    assert said in str(found.exception)


def test_a_gpu_without_a_unit_and_a_missing_directory_are_told(tmp_path: Path) -> None:
    assert "write 24GiB" in check(tmp_path, "--gpu", "24").output
    assert "nothing is downloaded" in str(check(tmp_path / "Qwen" / "Qwen2-VL-2B-Instruct").exception)
