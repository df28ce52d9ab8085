"""Adapters as PEFT makes and saves them, of tiny random models; and what those models then compute."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from opsin_plugins.conformance.batches import Prompt
from opsin_plugins.loading.open_model import open_model
from opsin_server.adapters.adapter_files import read_adapter_files
from opsin_server.adapters.base_model import AdapterLimits, BaseModel
from opsin_server.adapters.convert import Converted, convert
from support import oracle
from support.oracle import Ours


@dataclass
class Peft:
    """directory: as `save_pretrained` leaves it."""

    directory: Path
    model: PeftModel

    @torch.no_grad()
    def logits(self, ours: Ours, asked: Prompt) -> Tensor:
        return oracle.their_logits(self.model.base_model.model, ours, asked)


def linears(model: nn.Module, like: str = "") -> list[str]:
    """Paths of linear layers that a pattern finds."""
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and re.search(like, n)]


def make(theirs: PreTrainedModel, directory: Path, seed: int, *, strength: float = 0.3, **fields: Any) -> Peft:
    """A LoRA of a copy of the model, with factors that change answers."""
    torch.manual_seed(seed)
    fields.setdefault("target_modules", linears(theirs))
    model = get_peft_model(copy.deepcopy(theirs), LoraConfig(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, strength * parameter.shape[1] ** -0.5)
            elif "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval().save_pretrained(directory)
    return Peft(directory, model)


def base_of(directory: Path, rank: int = 64, options: dict[str, str] | None = None, **limits: Any) -> BaseModel:
    return BaseModel(open_model(directory, None, options or {}), AdapterLimits(rank, **limits))


def converted(directory: Path, base: BaseModel) -> Converted:
    files = read_adapter_files(directory)
    return convert(files.config, files.weights, base)
