"""Rows to train on and a base to train over, of tiny random models; and PEFT on transformers beside it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_plugins.conformance.batches import Prompt
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.linears import linears_of
from opsin_plugins.loading.lora_targets import LoraTargets
from opsin_plugins.loading.published_projector import published_projector
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec.visual_items import visible_images
from opsin_server.engine.training.memory import LargestRow
from opsin_server.engine.training.peft_form import peft_tensors
from opsin_server.engine.training.pieces import Piece
from opsin_server.engine.training.row_source import NeedsPixels
from opsin_server.engine.training.trained_model import TrainedModel
from opsin_server.engine.training.trainee import Trainee
from opsin_server.engine.training.trainer import RunShape
from opsin_server.ipc.item import Item
from opsin_server.ipc.training_messages import Split
from opsin_server.ipc.training_rows import Pixels, TrainingRow
from opsin_server.ipc.training_run import DataShape
from support import oracle, tiny
from support.inputs import their_inputs

Result = TypeVar("Result")
RATE = 1e-3


@dataclass
class Base:
    """A tiny model of a family in both forms. modules: published linears by group."""

    theirs: PreTrainedModel
    ours: oracle.Ours
    directory: Path
    trained: TrainedModel
    modules: dict[str, str]

    def of(self, *parts: str) -> tuple[str, ...]:
        """Modules whose group begins with one of these."""
        return tuple(name for name, group in self.modules.items() if group.startswith(parts))


def base(family: str, directory: Path, weight_format: str = "dense") -> Base:
    torch.manual_seed(0)  # (not every weight is shaken)
    return base_of(tiny.FAMILIES[family].make(), family, directory, weight_format)


def base_of(theirs: PreTrainedModel, family: str, directory: Path, weight_format: str = "dense") -> Base:
    ours = oracle.saved(theirs, directory, policy=WeightPolicy(weight_format))
    linears = linears_of(ours.spec, Registry())
    targets = LoraTargets(ours.architecture.weights(ours.spec), linears, ours.architecture.lora_groups(ours.spec))
    keys = read_model_files(directory).tensors
    projector = None
    if ours.spec.projector is not None:
        projector = published_projector(ours.architecture.weights(ours.spec), keys, ours.spec.projector)
    trained = TrainedModel(ours.model, targets, linears, torch.device("cpu"), family, projector)
    return Base(theirs, ours, directory, trained, targets.modules(keys))


@dataclass(frozen=True)
class Example:
    """A row with all that either side needs of it."""

    prompt: Prompt
    row: TrainingRow
    pixels: dict[bytes, Pixels]


def example(
    ours: oracle.Ours, seed: int, length: int, pictures: Sequence[tuple[int, int]] = (), labels: int = 5
) -> Example:
    """Random ids, with so many pictures of these sizes; the last ids are labels."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, 140, length).tolist()
    for number in range(len(pictures)):
        ids[2 + 3 * number] = tiny.IMAGE_TOKEN
    prompt = oracle.prompt(ours, ids, [oracle.picture(seed + n, *size) for n, size in enumerate(pictures)])
    learned = np.zeros(len(prompt), bool)
    learned[-labels:] = True
    items = tuple(
        Item(rng.bytes(8), i.grid, i.tokens, i.pixels.shape, i.tiles, i.hidden, i.arrange is not None)
        for i in prompt.items
    )
    row = TrainingRow(
        prompt.expanded.ids,
        prompt.positions,
        learned,
        prompt.spans,
        items,
        visible_images(prompt.expanded.visible),
    )
    pixels = {item.digest: Pixels(i.pixels, i.arrange) for item, i in zip(items, prompt.items, strict=True)}
    return Example(prompt, row, pixels)


def examples(ours: oracle.Ours, count: int = 3, seed: int = 0) -> list[Example]:
    """Rows with one picture, two and none, in turn; without any for a text model."""
    forms: list[tuple[int, list[tuple[int, int]]]] = [(20, [(24, 32)]), (25, [(32, 24), (40, 40)]), (12, [])]
    sees = ours.spec.vision is not None
    return [
        example(ours, seed + 10 * n, forms[n % 3][0] + n // 3, forms[n % 3][1] if sees else (), labels=3 + n % 4)
        for n in range(count)
    ]


@dataclass
class LocalRows:
    """A row source that has everything."""

    train: Sequence[Example]
    valid: Sequence[Example] = ()

    def count(self, split: Split) -> int:
        return len(self._of(split))

    def keep(self, budget: int) -> None:
        pass

    def want(self, split: Split, numbers: Sequence[int], needs: NeedsPixels) -> None:
        pass

    def take(self, split: Split, numbers: Sequence[int]) -> list[TrainingRow]:
        return [self._of(split)[number].row for number in numbers]

    def pixels(self, item: Item) -> Pixels:
        return next(one.pixels[item.digest] for one in (*self.train, *self.valid) if item.digest in one.pixels)

    def forget(self, item: Item) -> None:
        pass

    def _of(self, split: Split) -> Sequence[Example]:
        return self.train if split == "train" else self.valid


@dataclass
class Data:
    """Rows of this process, for an engine behind the door. asked: how often each row and picture was read. broken: a
    row that cannot be read."""

    train: Sequence[Example]
    broken: int | None = None
    asked: Counter[object] = field(default_factory=Counter)

    def count(self, split: Split) -> int:
        return len(self.train) if split == "train" else 0

    def shape(self) -> DataShape:
        found = shape_of(self.train)
        return DataShape(found.largest.tokens, found.largest.patches, found.probe)

    def row(self, split: Split, number: int) -> TrainingRow:
        self.asked[number] += 1
        if number == self.broken:
            raise OSError("the disk is gone")
        return self.train[number].row

    def pixels(self, digest: bytes) -> Pixels:
        self.asked[digest] += 1
        return next(one.pixels[digest] for one in self.train if digest in one.pixels)


MEMORY = 2**30


def shape_of(rows: Sequence[Example], together: int = 1) -> RunShape:
    """together: 2 for pairs."""
    groups = [rows[i : i + together] for i in range(0, len(rows), together)]
    tokens = max(sum(len(one.row.ids) for one in group) for group in groups)
    patches = [sum(item.shape[0] for one in group for item in one.row.items) for group in groups]
    return RunShape(LargestRow(tokens, max(patches)), patches.index(max(patches)))


def drive(pieces: Generator[Piece, None, Result]) -> Result:
    """All pieces, without a pause."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


class PeftTwin:
    """The same training by PEFT on transformers, row by row, with full logits."""

    def __init__(self, base: Base, trainee: Trainee, **fields: Any) -> None:
        settings = trainee.settings
        self.projector = base.trained.projector if settings.full_projector else None
        if self.projector is not None:
            fields["modules_to_save"] = list(self.projector.modules)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            use_rslora=settings.rslora,
            target_modules=list(settings.modules),
            **fields,
        )
        self.base, self.settings = base, settings
        self.model: PeftModel = get_peft_model(copy.deepcopy(base.theirs), config).train()
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in peft_tensors(trainee, self.projector).items():
                if ".lora_" in name:
                    own[name.replace(".weight", ".default.weight")].copy_(tensor)
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def _groups(self) -> list[dict[str, Any]]:
        """Learning rates as the settings say."""
        settings, found = self.settings, []
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            whole = ".modules_to_save." in name
            group = (
                "projector"
                if whole
                else self.base.modules[name.removeprefix("base_model.model.").partition(".lora_")[0]]
            )
            factor = {"vision": settings.vision_rate, "projector": settings.projector_rate}.get(
                group.split(".")[0], 1.0
            )
            factor *= settings.lora_plus_ratio if ".lora_B." in name else 1.0
            found.append({"params": [parameter], "lr": settings.learning_rate * factor})
        return found

    def logits(self, prompt: Prompt) -> Tensor:
        return self.model.base_model.model(**their_inputs(self.base.ours.spec, prompt)).logits[0]  # type: ignore[no-any-return]

    def losses(self, one: Example) -> Tensor:
        """Of each label."""
        where = np.flatnonzero(one.row.labels)
        targets = torch.from_numpy(one.row.ids[where]).long()
        return F.cross_entropy(self.logits(one.prompt)[where - 1].float(), targets, reduction="none")

    def step(self, rows: Sequence[Example]) -> tuple[float, float]:
        """The mean loss of the rows' labels and the gradient's norm; then an update."""
        loss = torch.cat([self.losses(one) for one in rows]).mean()
        loss.backward()
        limit = self.settings.max_gradient_norm or float("inf")
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item(), norm.item()

    def tensors(self) -> dict[str, Tensor]:
        """By the names that PEFT saves them under."""
        return {
            name.replace(".modules_to_save.default", "").replace(".default.weight", ".weight"): tensor.detach()
            for name, tensor in self.model.named_parameters()
            if ".lora_" in name or ".modules_to_save." in name
        }
