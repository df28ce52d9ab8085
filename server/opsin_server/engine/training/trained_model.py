"""The served model as a training run sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from opsin_plugins.blocks.model import Model
from opsin_plugins.loading.lora_targets import LoraTargets
from opsin_plugins.loading.published_projector import PublishedProjector
from opsin_plugins.spec import Linears
from opsin_server.engine.training.trainee import WholeProjector


class TrainingFailed(RuntimeError):
    """The run cannot go on; the text is for whoever owns it."""


@dataclass(frozen=True)
class TrainedModel:
    """What is trained over. name: the model's, as adapters name it. projector: its published names; or a sentence that
    says why it cannot be trained whole; None where there is none."""

    model: Model
    targets: LoraTargets
    linears: Linears
    device: torch.device
    name: str
    projector: PublishedProjector | str | None


def whole_projector(base: TrainedModel) -> WholeProjector:
    """Raises TrainingFailed where it cannot be trained whole."""
    if not isinstance(base.projector, PublishedProjector) or not base.projector.modules:
        why = base.projector if isinstance(base.projector, str) else "there is none that an adapter could hold"
        raise TrainingFailed(f"the projector cannot be trained whole: {why}")
    assert isinstance(base.model.projector, nn.Module)
    return WholeProjector(base.model.projector, {tensor.target for tensor in base.projector.tensors.values()})
