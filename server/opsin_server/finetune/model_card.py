"""What an adapter's README.md says of how it was trained: counts, settings and losses, and never a prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

from opsin_server import __version__
from opsin_server.ipc.training_events import Evaluated, StepDone, TrainingEnded
from opsin_server.ipc.training_settings import TrainingSettings
from opsin_server.jobs.prepared import Report

SHOWN = ("rank", "alpha", "rslora", "dropout", "learning_rate", "vision_rate", "projector_rate", "lora_plus_ratio",
         "weight_decay", "schedule", "warmup", "batch_size", "epochs", "max_steps", "seed")  # fmt: skip


def model_card(
    base: str,
    settings: TrainingSettings,
    train: Report,
    valid: Report | None,
    done: Sequence[StepDone],
    evaluated: Sequence[Evaluated],
    end: TrainingEnded,
) -> str:
    head = f"base_model: {json.dumps(base)}\nlibrary_name: peft\ntags: [lora, vision-language, opsin]\n"
    values = msgspec.structs.asdict(settings)
    lines = [
        f"---\n{head}---\n\n# A LoRA of {base}\n",
        f"Trained by opsin {__version__}: {end.step:,} steps, {end.tokens:,} tokens.\n",
        "## Data\n",
        _counts("Training", train),
        *([] if valid is None else [_counts("Validation", valid)]),
        "\n## Settings\n",
        f"- method: {settings.method}\n- modules: {len(settings.modules)}"
        + (", and the whole projector" if settings.full_projector else ""),
        *(f"- {name}: {values[name]}" for name in SHOWN if values[name] is not None),
        "\n## Losses\n",
        *_losses(done, evaluated),
    ]
    return "\n".join(lines) + "\n"


def _counts(title: str, report: Report) -> str:
    return (
        f"- {title}: {report.rows:,} rows, {report.image_uses:,} images, {report.tokens:,} tokens, of which "
        f"{report.labels:,} are learned" + (f"; {report.skipped:,} wrong rows were left out" if report.skipped else "")
    )


def _losses(done: Sequence[StepDone], evaluated: Sequence[Evaluated]) -> list[str]:
    found = []
    if done:
        first, last = done[0], done[-1]  # (of what was trained since the run was last begun)
        found.append(f"- step {first.step:,}: {first.loss:.4f}; step {last.step:,}: {last.loss:.4f}")
    found += [
        f"- validation at step {one.step:,}: {one.loss:.4f}, accuracy {one.accuracy:.1%}{' (best)' if one.best else ''}"
        for one in evaluated
    ]
    return found
