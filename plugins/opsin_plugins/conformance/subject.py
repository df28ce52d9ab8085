"""What is checked: an architecture, the spec of its example, and a tiny model with random weights."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from opsin_plugins.blocks.checkpoint import load_weights
from opsin_plugins.blocks.model import Model, build_model
from opsin_plugins.blocks.weight_policy import WeightPolicy
from opsin_plugins.conformance.batches import Prompt
from opsin_plugins.conformance.published import Published, invert, random_weights, write
from opsin_plugins.conformance.verdicts import Skipped
from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.linears import linears_of
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import U8, Architecture, ImageBudget, Linears, ModelFiles, ModelSpec, Rule

IMAGE = -1  # stands for the placeholder in TURNS; the other numbers choose a text id
# Every form of a batch: one picture, none, two of different sizes. Text comes last, as a template writes it.
TURNS: Sequence[tuple[Sequence[int], Sequence[tuple[int, int]]]] = (
    ((2, 3, IMAGE, 4, 5, 6), ((40, 30),)),
    ((1, 0, 8, 9, 10), ()),
    ((6, IMAGE, 5, IMAGE, 4, 3), ((25, 60), (33, 33))),
)
NO_EXAMPLE = "the plugin brings no example of a configuration (see Architecture.example)"
FIRST_TEXT_ID = 3  # below it are often the tokens that begin, end and pad


@dataclass
class Subject:
    """directory: an empty folder for the checkpoint. All else is made when a check first asks for it."""

    name: str
    architecture: Architecture
    registry: Registry
    directory: Path

    @cached_property
    def example(self) -> ModelFiles:
        make = getattr(self.architecture, "example", None)
        found: ModelFiles | None = None if make is None else make()
        if found is None:
            raise Skipped(NO_EXAMPLE)
        return found

    @cached_property
    def spec(self) -> ModelSpec:
        return self.architecture.spec(self.example)

    @cached_property
    def rules(self) -> Sequence[Rule]:
        return self.architecture.weights(self.spec)

    @cached_property
    def sketch(self) -> Model:
        """Without weights."""
        return build_model(self.spec, self.registry, device="meta")

    @cached_property
    def linears(self) -> Linears:
        return linears_of(self.spec, self.registry)

    @cached_property
    def published(self) -> Mapping[str, Published]:
        """What a checkpoint of this model holds, by its published names."""
        return invert(self.rules, self.sketch)

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        return random_weights(self.published)

    @cached_property
    def files(self) -> ModelFiles:
        """The random checkpoint, written and read as any other."""
        write(self.directory, self.example, self.weights)
        return read_model_files(self.directory, self.example.options)

    @cached_property
    def model(self) -> Model:
        return self.load()

    def load(self, policy: WeightPolicy = WeightPolicy()) -> Model:  # noqa: B008
        model = build_model(self.spec, self.registry, policy=policy)
        load_weights(model, self.rules, self.files)
        return model

    @cached_property
    def text_ids(self) -> Sequence[int]:
        special = {self.spec.image_token, *self.spec.eos}
        return [i for i in range(FIRST_TEXT_ID, self.spec.decoder.vocab) if i not in special]

    def encode(self, text: str) -> list[int]:
        """Stands for a tokenizer: what looks like a special token is one id, and so is every other character."""
        pieces = re.findall(r"<[^>]*>|\[[^\]]*\]|\n+|.", text)
        return [self.text_ids[zlib.crc32(piece.encode()) % len(self.text_ids)] for piece in pieces]

    def ids(self, turn: Sequence[int]) -> list[int]:
        image = self.spec.image_token
        return [image if i == IMAGE and image is not None else self.text_ids[i] for i in turn]

    def prompt(self, turn: Sequence[int], sizes: Sequence[tuple[int, int]]) -> Prompt:
        images = [picture(seed, *size) for seed, size in enumerate(sizes)]
        items = self.architecture.preprocess(images, self.spec, ImageBudget())
        expanded = self.architecture.expand(self.ids(turn), items, self.spec, self.encode)
        positions, delta = self.architecture.positions(expanded, items, self.spec)
        return Prompt(expanded, items, positions, delta, self.spec.decoder.rope)

    @cached_property
    def turns(self) -> Sequence[tuple[Sequence[int], Sequence[tuple[int, int]]]]:
        """Those of TURNS that this model can take."""
        return [turn for turn in TURNS if self.spec.vision is not None or not turn[1]]

    @cached_property
    def prompts(self) -> Sequence[Prompt]:
        return [self.prompt(*turn) for turn in self.turns]


def picture(seed: int, height: int, width: int) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
