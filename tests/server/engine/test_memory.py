"""How memory is divided, and what is refused before any weight is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opsin_plugins.loading.files import read_model_files
from opsin_server.config import EngineConfig
from opsin_server.engine.startup import memory_plan as memory
from opsin_server.engine.startup.load import load_engine
from opsin_server.errors import ConfigError
from support import oracle, tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.qwen2_vl(), tmp_path_factory.mktemp("model"))


def resolve(directory: Path, **options: object) -> memory.ResolvedConfig:
    ours = oracle.load(directory)
    config = EngineConfig(model=str(directory), **options)
    return memory.resolve(config, ours.spec, CPU, torch.float32, 1000, memory.free_bytes(CPU))


def test_the_pool_holds_every_sequence_at_full_length_when_memory_allows(directory: Path) -> None:
    settled = resolve(directory, max_sequences=4)
    assert settled.max_context == 512
    assert settled.memory.kv_blocks == 4 * 512 // 16
    per_token = 2 * 3 * 2 * 16 * 4  # keys and values, layers, heads, head size, fp32
    assert settled.memory.kv_bytes == 4 * 512 * per_token


def test_little_kv_memory_shortens_the_context_unless_it_was_asked_for(directory: Path) -> None:
    tokens = 2 * 3 * 2 * 16 * 4
    assert resolve(directory, kv_memory=100 * tokens).max_context == 96  # whole blocks
    with pytest.raises(ConfigError, match=r"--max-context 200 needs .* there are .*--kv-memory"):
        resolve(directory, kv_memory=100 * tokens, max_context=200)
    with pytest.raises(ConfigError, match="hold no KV block"):
        resolve(directory, kv_memory=10)


def test_a_step_has_a_row_for_every_sequence(directory: Path) -> None:
    with pytest.raises(ConfigError, match="--max-batch-tokens 7 is less than --max-sequences 8"):
        resolve(directory, max_batch_tokens=7, max_sequences=8)
    assert resolve(directory, max_batch_tokens=8, max_sequences=8).max_batch_tokens == 8
    assert resolve(directory, max_sequences=100_000).max_batch_tokens == 100_000


def test_memory_that_was_asked_for_must_be_there_on_a_gpu(directory: Path) -> None:
    """A CPU's pages are taken when they are first used; a GPU's at once."""
    spec, device = oracle.load(directory).spec, torch.device("cuda")
    config = EngineConfig(model=str(directory), kv_memory=2**30)
    assert memory.resolve(config, spec, device, torch.float16, 1000, 2**31).memory.kv_bytes > 0
    with pytest.raises(ConfigError, match=r"--kv-memory need 1,\d+,\d+,\d+ bytes; 1,073,741,824 are free on cuda"):
        memory.resolve(config, spec, device, torch.float16, 1000, 2**30)


def test_weights_that_do_not_fit_are_refused_with_both_numbers(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10)
    with pytest.raises(ConfigError, match="the weights need 1,000 bytes as float32; 10 are free on cpu: 990 too few"):
        resolve(directory)


def test_a_container_limit_counts_as_the_machines_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    real = Path

    def redirected(name: str) -> Path:
        return tmp_path / real(name).name if "cgroup" in str(name) else real(name)

    monkeypatch.setattr(memory, "Path", redirected)
    assert memory.free_bytes(CPU) == 600


@pytest.mark.parametrize(
    ("stored", "device", "asked", "expected"),
    [
        ("BF16", "cpu", "auto", torch.float32),
        ("BF16", "cuda", "auto", torch.bfloat16),
        ("F16", "cuda", "auto", torch.float16),
        ("F32", "cuda", "auto", torch.bfloat16),
        ("F32", "cpu", "bfloat16", torch.bfloat16),
    ],
)
def test_types_are_settled_by_device_and_checkpoint(
    directory: Path, stored: str, device: str, asked: str, expected: torch.dtype
) -> None:
    files = read_model_files(directory)
    files = replace(files, tensors={k: replace(v, dtype=stored) for k, v in files.tensors.items()})
    assert memory.choose_dtype(asked, torch.device(device), files) == expected


def test_a_quantized_checkpoint_is_refused_with_its_scheme_and_the_bytes(tmp_path: Path) -> None:
    directory = tiny.save(tiny.qwen2_vl(), tmp_path)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (directory / "config.json").write_text(json.dumps(config))
    parameters = sum(p.numel() for p in oracle_parameters(directory, config))
    with pytest.raises(ConfigError) as failure:
        load_engine(EngineConfig(model=str(directory)), lambda done, total: None)
    assert "quantization_config 'awq'" in str(failure.value)
    assert f"{2 * parameters:,} bytes" in str(failure.value)
    assert "are free on cpu" in str(failure.value)


def oracle_parameters(directory: Path, config: dict[str, object]) -> list[torch.Tensor]:
    del config["quantization_config"]
    plain = directory / "plain"
    plain.mkdir()
    for file in directory.iterdir():
        if file.is_file():
            (plain / file.name).write_bytes(file.read_bytes())
    (plain / "config.json").write_text(json.dumps(config))
    return list(oracle.load(plain).model.parameters())


def test_the_embedded_model_loads_and_says_how(tmp_path: Path) -> None:
    from opsin_server.embedded import MODEL

    seen: list[tuple[int, int]] = []
    engine, ready = load_engine(EngineConfig(model=str(MODEL)), lambda done, total: seen.append((done, total)))
    assert ready.dtype == "float32"
    assert ready.memory.weights == sum(
        t.nbytes for t in (*engine.runner.model.parameters(), *engine.runner.model.buffers())
    )
    assert seen[-1][0] == seen[-1][1] > 4_000_000
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
