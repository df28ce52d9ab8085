"""What `opsin check` says of training is what a run will count before its first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from opsin_plugins.loading.open_model import open_model
from opsin_server.config import EngineConfig
from opsin_server.engine.startup import training_estimate
from opsin_server.engine.startup.check_directory import check_directory
from opsin_server.engine.startup.inspect_checkpoint import examine, largest_image
from opsin_server.engine.startup.load import load_engine
from opsin_server.engine.startup.made_up_row import made_up_row
from opsin_server.engine.startup.training_warmup import warm_training
from opsin_server.engine.training import memory
from opsin_server.engine.training.micro_batch import collate
from opsin_server.engine.training.modules import trained_modules
from opsin_server.engine.training.trainee import Trainee
from opsin_server.ipc.training_settings import TrainingSettings
from support import tiny
from support.training import drive

FREE = 2**33


@pytest.fixture(params=[(family, "none") for family in tiny.FAMILIES] + [("qwen2_vl", "int8"), ("mllama", "int8")])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> EngineConfig:
    family, quantize = request.param
    tiny.save(tiny.FAMILIES[family].make(), tmp_path / "model")
    return EngineConfig(str(tmp_path / "model"), max_context=64, quantization=quantize, train_memory=2**28)


def test_without_memory_the_same_is_counted(config: EngineConfig) -> None:
    opened = open_model(Path(config.model), options=config.family_options())
    inspected = examine(opened, config, torch.device("cpu"))
    item = largest_image(inspected.architecture, inspected.spec, 64)
    sketch = training_estimate._Sketch(inspected)
    assert sketch.count(item) == (said := sketch.count(item))
    numbers = sketch.numbers
    loaded = load_engine(config, lambda done, total: None)
    base, (row, visual) = loaded.base, made_up_row(inspected, item)
    modules = trained_modules(tuple(base.targets.modules(inspected.files.tensors)), base.targets)
    settings = TrainingSettings(modules=(), rank=training_estimate.RANKS[0])
    trainee = Trainee(modules, base.linears, settings, base.device)
    assert numbers == len(trainee.flat)
    batch = collate([row], inspected.spec, base.device)
    assert said == drive(memory.count(base.model, batch, visual, trainee.lora(None), numbers))
    assert said.language.all > said.language.largest > 0
    assert (said.vision.all > 0) == (item is not None)
    before = checksum(base.model)
    warm_training(base, inspected)
    assert checksum(base.model) == before
    loaded.engine.close()


def checksum(model: torch.nn.Module) -> list[float]:
    return [float(tensor.double().sum()) for tensor in (*model.parameters(), *model.buffers())]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("model")
    tiny.save(tiny.FAMILIES["qwen2_vl"].make(), found)
    rules = json.loads((found / "preprocessor_config.json").read_text())
    (found / "preprocessor_config.json").write_text(json.dumps({**rules, "max_pixels": 400 * 400}))
    return found


def test_less_memory_is_a_smaller_rank_before_it_is_a_smaller_picture(directory: Path) -> None:
    config = EngineConfig(str(directory))

    def said(megabytes: int) -> tuple[int, int, int]:
        found = check_directory(replace(config, train_memory=megabytes * 2**20), None).training
        assert found is not None
        assert found.memory == megabytes * 2**20
        return found.rank, found.image_tokens, found.least

    rank, largest, least = said(512)
    assert (rank, least) == (64, 0)
    found = [said(megabytes) for megabytes in (32, 24, 16, 12, 10, 9, 8, 4)]
    assert found == sorted(found, key=lambda one: (-one[1], -one[0]))
    assert any(0 < rank < 64 and tokens == largest for rank, tokens, _ in found)
    assert any(0 < tokens < largest for _, tokens, _ in found)
    rank, _, least = found[-1]
    assert rank == 0
    enough = check_directory(replace(config, train_memory=least), None).training
    assert enough is not None
    assert enough.rank == 8
