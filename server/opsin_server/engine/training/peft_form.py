"""The adapter in training as PEFT saves one: its names, the published order of rows and columns, its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from opsin_plugins.loading.published_projector import PublishedProjector
from opsin_plugins.loading.weight_matching import reordered
from opsin_server.engine.training.modules import TrainedModule
from opsin_server.engine.training.trainee import Trainee
from opsin_server.ipc.training_settings import TrainingSettings


@torch.no_grad()
def peft_tensors(trainee: Trainee, projector: PublishedProjector | None) -> dict[str, Tensor]:
    """The adapter under PEFT's names, in the published order of rows and columns. projector: where it is trained whole,
    its published names."""
    found = {}
    for module in trainee.modules:
        a, bs = trainee.factors_of(module)
        found[f"base_model.model.{module.name}.lora_A.weight"] = _published_a(module, a).cpu().contiguous().clone()
        found[f"base_model.model.{module.name}.lora_B.weight"] = _published_b(module, bs).cpu().contiguous().clone()
    whole = trainee.projector
    for name, published in ({} if projector is None else projector.tensors).items():
        tensor = whole[published.target]
        back = None if published.reorder is None else published.reorder.inverse
        found[f"base_model.model.{name}"] = reordered(tensor, back, torch.permute).cpu().contiguous().clone()
    return found


@torch.no_grad()
def take_peft_tensors(trainee: Trainee, tensors: Mapping[str, Tensor], projector: PublishedProjector | None) -> None:
    """The other way round: the trainee becomes the adapter with these tensors, which `peft_tensors` would give. Raises
    ValueError for other tensors."""
    own = peft_tensors(trainee, projector)
    if differing := sorted(own.keys() ^ tensors.keys()):
        raise ValueError(f"{differing[0]} is in only one of the two")
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}")
    for module in trainee.modules:
        a, bs = trainee.factors_of(module)
        name = f"base_model.model.{module.name}"
        a.copy_(_own(module, tensors[f"{name}.lora_A.weight"], 1))
        whole = _own(module, tensors[f"{name}.lora_B.weight"], 0)
        for b, part in zip(bs, whole.split(module.outputs), strict=True):
            b.copy_(part.t())
    whole_projector = trainee.projector
    for name, published in ({} if projector is None else projector.tensors).items():
        tensor = tensors[f"base_model.model.{name}"]
        whole_projector[published.target].copy_(reordered(tensor, published.reorder, torch.permute))


def _own(module: TrainedModule, tensor: Tensor, axis: int) -> Tensor:
    """In the model's order."""
    reorder = module.targets[0].reorder
    return tensor if reorder is None or reorder.axis != axis else reordered(tensor, reorder, torch.permute)


def _published_a(module: TrainedModule, a: Tensor) -> Tensor:
    """[rank, inputs]."""
    reorder = module.targets[0].reorder
    return a if reorder is None or reorder.axis != 1 else reordered(a, reorder.inverse, torch.permute)


def _published_b(module: TrainedModule, bs: Sequence[Tensor]) -> Tensor:
    """[outputs, rank]."""
    whole = torch.cat([b.t() for b in bs])
    reorder = module.targets[0].reorder
    return whole if reorder is None or reorder.axis != 0 else reordered(whole, reorder.inverse, torch.permute)


def peft_config(
    modules: Sequence[TrainedModule], settings: TrainingSettings, base: str, projector: PublishedProjector | None
) -> dict[str, Any]:
    """Of `peft.LoraConfig`: every module is named whole, so that no pattern can find others. base: the model's name."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "init_lora_weights": "gaussian" if settings.initialization == "gaussian" else True,
        "target_modules": [module.name for module in modules],
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None if projector is None else list(projector.modules),
    }
