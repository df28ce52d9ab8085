"""How memory is divided, and what is refused before any weight is read."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from opsin_plugins.blocks import adapter_slots, inputs
from opsin_plugins.conformance.batches import Piece, encode, model_inputs, visual
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.linears import linears_of
from opsin_plugins.loading.registry import Registry
from opsin_server.config import EngineConfig
from opsin_server.engine.startup import activations, load
from opsin_server.engine.startup import device as device_
from opsin_server.engine.startup import memory_plan as memory
from opsin_server.engine.startup.load import load_engine
from opsin_server.errors import ConfigError
from support import engines, oracle, packers, quantized_checks, tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.qwen2_vl(), tmp_path_factory.mktemp("model"))


def needs(directory: Path, dtype: torch.dtype = torch.float32) -> memory.ModelNeeds:
    ours = oracle.load(directory)
    (largest,) = oracle.prompt(ours, [tiny.IMAGE_TOKEN], [oracle.picture(0, 80, 80)]).items
    return memory.ModelNeeds(ours.spec, linears_of(ours.spec, Registry()), 1000, dtype, 64, largest)


def resolve(directory: Path, free: int = 2**32, **options: object) -> memory.ResolvedConfig:
    options = {"max_loras": 0, **options}
    return memory.resolve(EngineConfig(model=str(directory), **options), needs(directory), CPU, free)


def test_the_pool_holds_every_sequence_at_full_length_when_memory_allows(directory: Path) -> None:
    settled = resolve(directory, max_sequences=4)
    assert settled.max_context == 512
    assert settled.memory.kv_blocks == 4 * 512 // 16
    per_token = 2 * 3 * 2 * 16 * 4  # keys and values, layers, heads, head size, fp32
    assert settled.memory["keys and values"] == 4 * 512 * per_token


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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_that_was_asked_for_must_be_there(directory: Path, device: str) -> None:
    """All that is set aside is named, with the numbers."""
    config = EngineConfig(model=str(directory), kv_memory=2**30, encoder_memory=2**20)
    settled = memory.resolve(config, needs(directory), torch.device(device), 2**32)
    assert settled.memory["keys and values"] > 0.99 * 2**30
    with pytest.raises(ConfigError, match=r"weights 1,000, visual tokens .*, keys and values 1,073,\d+,\d+ are "):
        memory.resolve(config, needs(directory), torch.device(device), 2**30)


def test_every_reserve_is_in_the_ledger_before_anything_is_allocated(directory: Path) -> None:
    plain = resolve(directory).memory
    assert [r.name for r in plain.reserves] == [
        "weights", "visual tokens", "largest step", "largest encode", "training", "keys and values",
    ]  # fmt: skip
    assert plain.free == plain.reserved + plain.slack
    adapted = resolve(directory, max_loras=3, max_lora_rank=8).memory
    model = needs(directory)
    assert model.spec.projector is not None
    own = sum(math.prod(shape) for shape in model.spec.projector.parameters().values())
    slot = adapter_slots.slot_bytes(model.linears, 8, 4) + 4 * own
    for name in ("adapter slots", "host copies", "adapters side by side"):
        assert adapted[name] == 3 * slot
    assert adapted.slack == plain.slack - 9 * slot
    model, cuda = needs(directory, torch.bfloat16), torch.device("cuda")
    recorded = memory.resolve(EngineConfig(model=str(directory)), model, cuda, 2**34).memory
    eager = memory.resolve(EngineConfig(model=str(directory), eager=True), model, cuda, 2**34).memory
    assert recorded["captures"] > eager["captures"] == 0


def test_what_is_kept_of_pictures_holds_the_largest(directory: Path) -> None:
    model = needs(directory)
    with pytest.raises(ConfigError, match=r"--encoder-memory 10 bytes do not hold the largest image, which takes \d+"):
        resolve(directory, encoder_memory=10)
    token = model.visual_token_bytes
    assert resolve(directory, encoder_memory=100 * 16 * token + 5).memory["visual tokens"] == 100 * 16 * token
    assert resolve(directory, free=2**27).memory["visual tokens"] < 2**27 // 10


def test_what_leaves_no_room_is_told_with_all_numbers_and_what_helps(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights 1,000, .*largest step .* too few. Less is needed with "):
        resolve(directory, free=400_000)


def test_small_pictures_take_no_more_than_was_set_aside(directory: Path) -> None:
    """Thousands of them, each in blocks of the pool: nothing is allocated for one."""
    ours = oracle.load(directory)
    engine = engines.make_engine(ours, encoder_blocks=64, prefix_cache=False)
    pool = engine.runner.visual_pool[0]
    for seed in range(100):
        asked = engines.Asked([tiny.IMAGE_TOKEN, 5], [oracle.picture(seed, 20 + seed % 30, 24)], count=1)
        engines.ask(engine, ours, [asked])
    assert engine.scheduler.encoder.hits == 0
    assert engine.scheduler.encoder.free < 16, "it is nearly full of those that were used last"
    assert engine.stats().encoder_bytes <= pool.nbytes == 64 * 4 * ours.spec.decoder.width * 4


@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.empty(2**60), lambda: np.empty(2**57), lambda: _raise(torch.OutOfMemoryError("CUDA out"))],
)
def test_what_cannot_be_allocated_at_the_start_is_one_sentence(
    directory: Path, monkeypatch: pytest.MonkeyPatch, allocate: Callable[[], object]
) -> None:
    monkeypatch.setattr(load, "assemble", lambda *given: allocate())
    with pytest.raises(ConfigError, match=r"bytes were counted and .* free on cpu, but no more could be allocated"):
        load_engine(EngineConfig(model=str(directory)), lambda done, total: None)


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "mllama"])
def test_activations_are_counted_about_right(family: str, tmp_path: Path) -> None:
    """Bytes of tensors that live at the same time while a prompt and a picture are computed."""
    ours = oracle.load(tiny.save(tiny.FAMILIES[family].make(), tmp_path))
    asked = oracle.prompt(ours, [5, 6, tiny.IMAGE_TOKEN, *range(3, 120)], [oracle.picture(0, 80, 80)])
    model, items = ours.model, asked.items
    with torch.no_grad(), LiveBytes() as encoding:
        tokens = encode(model, items)
    counted = activations.encode_bytes(ours.spec, items[0], 4)
    assert 0.3 * counted < encoding.most < 2 * counted
    piece = [Piece(0, asked, tokens, 0, len(asked))]
    inputs_ = model_inputs(model, piece)
    with torch.no_grad(), LiveBytes() as step:
        model.logits(model(inputs.token_ids(piece), inputs_, None, visual(piece)))
    counted = activations.step_bytes(ours.spec, len(asked), len(asked), 4)
    assert 0.3 * counted < step.most < 2 * counted


class LiveBytes(TorchDispatchMode):
    """most: bytes of the storages that operations have made, as many as lived at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), given)
        return out

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key in self._seen or key in given:  # (a view of a weight is no memory of its own)
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def test_weights_that_do_not_fit_are_refused_with_both_numbers(directory: Path) -> None:
    with pytest.raises(ConfigError, match="the weights need 1,000 bytes as float32; 10 are free on cpu: 990 too few"):
        resolve(directory, free=10)


def test_a_container_limit_counts_as_the_machines_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    monkeypatch.setattr(device_, "CGROUP", tmp_path)
    assert device_.free_bytes(CPU) == 600
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 250\n")
    assert device_.free_bytes(CPU) == 850, "files that were read and are not needed go when memory is wanted"


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
    assert device_.choose_dtype(asked, torch.device(device), files) == expected


def test_a_packed_checkpoint_is_counted_as_it_is_stored(tmp_path: Path) -> None:
    model = quantized_checks.tiny()
    config = {"quant_method": "awq", "bits": 4, "group_size": 64}
    quantized_checks.saved(model, tmp_path, config, lambda name, weight: packers.awq(weight, 64))
    loaded = load_engine(EngineConfig(model=str(tmp_path), max_context=64), lambda done, total: None)
    stored = dict(loaded.ready.stored)
    held = (*loaded.base.model.parameters(), *loaded.base.model.buffers())
    assert sum(stored.values()) == loaded.ready.memory["weights"] == sum(tensor.nbytes for tensor in held)
    codes = sum(module.weight.numel() for module in quantized_checks.linears(model).values())
    assert stored["int4 by 64"] == codes // 2 + codes // 64 * 8
    assert set(stored) == {"int4 by 64", "float32", "int64"}
    with pytest.raises(ConfigError, match="quantized already"):
        load_engine(EngineConfig(model=str(tmp_path), quantization="int8"), lambda done, total: None)


def test_the_embedded_model_loads_and_says_how(tmp_path: Path) -> None:
    from opsin_server.embedded import MODEL

    seen: list[tuple[int, int]] = []
    loaded = load_engine(EngineConfig(model=str(MODEL)), lambda done, total: seen.append((done, total)))
    engine, ready = loaded.engine, loaded.ready
    assert ready.dtype == "float32"
    assert ready.memory["weights"] == sum(
        t.nbytes for t in (*engine.runner.model.parameters(), *engine.runner.model.buffers())
    )
    assert seen[-1][0] == seen[-1][1] > 4_000_000
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
