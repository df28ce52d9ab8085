"""One system of bench/train.py in a process of its own: trains an epoch each time it is told to, and says how long it
took. So two systems take turns, and each has a peak of memory of its own."""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from train_rows import MadeRow, made_rows

from opsin_plugins.loading.open_model import OpenModel, open_model
from opsin_server.engine.training.memory import LargestRow

RANK, RATE, BATCH = 16, 2e-4, 8
MEMORY = {"cpu": 2 * 2**30, "cuda": 48 * 2**30}  # that training may have
CONTEXT, MICRO_BATCH = {"cpu": 1024, "cuda": 4096}, {"cpu": 2048, "cuda": 8192}
PARTS = {"frozen": ("language",), "trained": ("vision", "projector", "language")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=["opsin", "peft", "peft-labels"])
    parser.add_argument("tower", choices=list(PARTS))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--side", type=int, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = open_model(given.directory, None, {})
    rows = made_rows(model, given.rows, 0, given.side)
    dtype = getattr(torch, given.dtype)
    make = _opsin if given.system == "opsin" else _peft
    epoch = make(given, model, rows, dtype)
    loaded = _peak(given.device)
    for line in sys.stdin:
        began = time.perf_counter()
        loss = epoch()
        if given.device == "cuda":
            torch.cuda.synchronize()
        told = {"seconds": time.perf_counter() - began, "loss": loss, "loaded": loaded, "peak": _peak(given.device)}
        ctypes.CDLL(None).malloc_trim(0)  # else two that take turns would not fit into a small machine together
        print(json.dumps(told), flush=True)
        if line.strip() == "last":
            return


def _peak(device: str) -> int:
    """Bytes: of the process, or of the GPU's allocator."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def modules_of(model: OpenModel, tower: str) -> list[str]:
    from opsin_server.jobs.what_trains import trainable_modules

    return [name for name, group in trainable_modules(model).items() if group.startswith(PARTS[tower])]


def _opsin(given: Any, model: OpenModel, rows: Sequence[MadeRow], dtype: torch.dtype) -> Callable[[], float]:
    from opsin_server.config import EngineConfig
    from opsin_server.engine.startup.load import load_engine
    from opsin_server.engine.training.memory import MemoryPool
    from opsin_server.engine.training.trainer import RunShape, Trainer
    from opsin_server.ipc.training_events import StepDone
    from opsin_server.ipc.training_settings import TrainingSettings

    config = EngineConfig(
        str(given.directory), device=given.device, dtype=given.dtype, max_context=CONTEXT[given.device],
        max_sequences=1, max_loras=0, train_memory=MEMORY[given.device], max_train_jobs=1,
    )  # fmt: skip
    base = load_engine(config, lambda done, total: None).base
    settings = TrainingSettings(
        modules=tuple(modules_of(model, given.tower)), rank=RANK, learning_rate=RATE, vision_rate=1.0,
        projector_rate=1.0, schedule="constant", batch_size=BATCH, epochs=10**6, save_every=10**9,
        micro_batch_tokens=MICRO_BATCH[given.device],
    )  # fmt: skip
    shape = RunShape(largest_of(rows))
    trainer = Trainer(
        base, settings, LocalRows(rows), Path(tempfile.mkdtemp()), MemoryPool(MEMORY[given.device]), shape
    )
    pieces = trainer.run()

    def epoch() -> float:
        wanted = trainer.progress.step + trainer.order.steps_per_epoch
        while trainer.progress.step < wanted:
            next(pieces)
        done = [event for event in trainer.events if isinstance(event, StepDone)][-trainer.order.steps_per_epoch :]
        return sum(event.loss * event.labels for event in done) / sum(event.labels for event in done)

    return epoch


def largest_of(rows: Sequence[MadeRow]) -> LargestRow:
    patches = (sum(len(item.pixels) for item in row.items) for row in rows)
    return LargestRow(max(len(row.row.ids) for row in rows), max(patches))


class LocalRows:
    """A row source that has everything."""

    def __init__(self, rows: Sequence[MadeRow]) -> None:
        self._rows = rows
        self._pixels = {digest: pixels for row in rows for digest, pixels in row.pixels.items()}

    def count(self, split: str) -> int:
        return len(self._rows) if split == "train" else 0

    def keep(self, budget: int) -> None:
        pass

    def want(self, split: str, numbers: Sequence[int], needs: Any) -> None:
        pass

    def take(self, split: str, numbers: Sequence[int]) -> Any:
        return [self._rows[number].row for number in numbers]

    def pixels(self, item: Any) -> Any:
        return self._pixels[item.digest]

    def forget(self, item: Any) -> None:
        pass


def _peft(given: Any, model: OpenModel, rows: Sequence[MadeRow], dtype: torch.dtype) -> Callable[[], float]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(given.directory, dtype=dtype).to(given.device)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=modules_of(model, given.tower))
    peft = get_peft_model(base, config).train()
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    # Length-grouped: rows of about one length are padded together.
    ordered = sorted(rows, key=lambda one: len(one.row.ids))
    batches = [_padded(model, ordered[i : i + BATCH], dtype) for i in range(0, len(ordered), BATCH)]
    inner = peft.base_model.model
    labelled = given.system == "peft-labels"

    def step(batch: dict[str, Tensor]) -> tuple[float, int]:
        batch = {name: tensor.to(given.device, non_blocking=True) for name, tensor in batch.items()}
        targets = batch.pop("labels")
        shifted = F.pad(targets[:, 1:], (0, 1), value=-100)
        chosen = shifted != -100
        if labelled:
            states = inner.model(**batch).last_hidden_state
            logits = inner.lm_head(states[chosen])
        else:
            logits = inner(**batch).logits.float().flatten(0, 1)
            shifted = shifted.flatten()
        loss = F.cross_entropy(logits.float(), shifted[chosen] if labelled else shifted, ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in peft.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item(), int(chosen.sum())

    def epoch() -> float:
        found = [step(batch) for batch in batches]
        return sum(loss * count for loss, count in found) / sum(count for _, count in found)

    return epoch


def _padded(model: OpenModel, rows: Sequence[MadeRow], dtype: torch.dtype) -> dict[str, Tensor]:
    longest = max(len(one.row.ids) for one in rows)
    ids, mask, labels = (torch.zeros(len(rows), longest, dtype=torch.int64) for _ in range(3))
    labels.fill_(-100)
    patches, vision = [], model.spec.vision
    assert vision is not None
    mean, std = (torch.tensor(x)[:, None, None] for x in (vision.mean, vision.std))
    for line, one in enumerate(rows):
        count = len(one.row.ids)
        ids[line, :count] = torch.from_numpy(one.row.ids.astype("int64"))
        mask[line, :count] = 1
        where = torch.from_numpy(one.row.labels.nonzero()[0])
        labels[line, where] = ids[line, where]
        for item in one.items:
            pixels = torch.from_numpy(item.pixels).view(-1, 3, vision.patch, vision.patch).float() / 255
            normal = ((pixels - mean) / std)[:, :, None].expand(-1, -1, vision.temporal, -1, -1)
            patches.append(normal.flatten(1).to(dtype))
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "pixel_values": torch.cat(patches),
        "image_grid_thw": torch.tensor([item.grid for one in rows for item in one.items]),
        "mm_token_type_ids": (ids == model.spec.image_token).int(),
    }


if __name__ == "__main__":
    main()
