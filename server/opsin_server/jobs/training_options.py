"""How a model is trained, as people say it; and what the engine is told."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
from msgspec import Meta

from opsin_server.ipc.training_settings import Initialization, Method, Schedule, TrainingSettings
from opsin_server.option import Option

LARGEST = 10**9  # of any number: beyond it a float32 loses itself in the first products
Count = Annotated[int, Meta(ge=1, le=LARGEST)]
Rate = Annotated[float, Meta(gt=0, le=1)]
WARMUP_SHARE = 0.03


class TrainingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rates are of AdamW. What is None follows from the rest."""

    rank: Annotated[Annotated[int, Meta(ge=1, le=1024)], Option("Rank of the factors.", name="lora-rank")] = 16
    alpha: Annotated[
        Annotated[float, Meta(gt=0, le=65536)] | None,
        Option("Scale of the factors, by their rank. Default: the rank.", name="lora-alpha"),
    ] = None
    dropout: Annotated[Annotated[float, Meta(ge=0, lt=1)], Option("Of what the factors see.", name="lora-dropout")] = (
        0.0
    )
    rslora: Annotated[bool, Option("Scale by the square root of the rank.", name="use-rslora")] = False
    initialization: Annotated[Initialization, Option("Of A, as PEFT names it.", name="init-lora-weights")] = "default"
    learning_rate: Annotated[Rate, Option("Of the language's factors.")] = 2e-4
    vision_learning_rate: Annotated[Rate | None, Option("Of the vision tower's. Default: a tenth.")] = None
    projector_learning_rate: Annotated[Rate | None, Option("Of the projector's. Default: as the vision tower's.")] = (
        None
    )
    lora_plus_ratio: Annotated[
        Annotated[float, Meta(ge=1, le=1000)], Option("LoRA+: how much faster B learns than A.")
    ] = 1.0
    weight_decay: Annotated[Annotated[float, Meta(ge=0, le=1)], Option("Of AdamW.")] = 0.0
    max_grad_norm: Annotated[
        Annotated[float, Meta(ge=0, le=LARGEST)], Option("Gradients are clipped to it; 0: they are not.")
    ] = 1.0
    lr_schedule: Annotated[Schedule, Option("How the rate falls.")] = "cosine"
    warmup_steps: Annotated[
        Annotated[int, Meta(ge=0, le=LARGEST)] | None, Option("Steps in which the rate rises. Default: 3 % of all.")
    ] = None
    batch_size: Annotated[Count, Option("Rows of a step.")] = 8
    epochs: Annotated[Count, Option("Times that every row is seen.")] = 3
    max_steps: Annotated[Count | None, Option("Steps, instead of epochs.")] = None
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=2**63 - 1)], Option("Of the factors, the order of rows and dropout.")
    ] = 0
    eval_steps: Annotated[Count | None, Option("Steps between evaluations. Default: an epoch.")] = None
    save_steps: Annotated[Count | None, Option("Steps between checkpoints. Default: an epoch.")] = None
    early_stopping_patience: Annotated[
        Count | None, Option("Evaluations without a better one, after which training ends.")
    ] = None
    keep_checkpoints: Annotated[Count, Option("How many of the newest are kept, beside the best.")] = 3
    beta: Annotated[Annotated[float, Meta(gt=0, le=10000)], Option("Of DPO.", name="dpo-beta")] = 0.1


def settings_of(
    options: TrainingOptions,
    modules: tuple[str, ...],
    rows: int,
    method: Method,
    micro_batch_tokens: int,
    full_projector: bool = False,
) -> TrainingSettings:
    """rows: to train on."""
    vision = options.vision_learning_rate or options.learning_rate / 10
    projector = options.projector_learning_rate or vision
    steps = options.max_steps or options.epochs * math.ceil(rows / min(rows, options.batch_size))
    warmup = options.warmup_steps if options.warmup_steps is not None else round(WARMUP_SHARE * steps)
    return TrainingSettings(
        modules=modules,
        full_projector=full_projector,
        rank=options.rank,
        alpha=options.alpha or float(options.rank),
        rslora=options.rslora,
        dropout=options.dropout,
        initialization=options.initialization,
        method=method,
        beta=options.beta,
        learning_rate=options.learning_rate,
        vision_rate=vision / options.learning_rate,
        projector_rate=projector / options.learning_rate,
        lora_plus_ratio=options.lora_plus_ratio,
        weight_decay=options.weight_decay,
        max_gradient_norm=options.max_grad_norm,
        schedule=options.lr_schedule,
        warmup=warmup,
        batch_size=options.batch_size,
        epochs=options.epochs,
        max_steps=options.max_steps,
        seed=options.seed,
        evaluate_every=options.eval_steps,
        save_every=options.save_steps,
        patience=options.early_stopping_patience,
        keep_checkpoints=options.keep_checkpoints,
        micro_batch_tokens=micro_batch_tokens,
    )


def planned_steps(settings: TrainingSettings, rows: int) -> int:
    """rows: to train on."""
    return settings.max_steps or settings.epochs * math.ceil(rows / min(rows, settings.batch_size))


def stopped_early(settings: TrainingSettings, rows: int, step: int) -> str:
    """What the owner of a run that has succeeded is told; empty where it made all of its steps. step: its last."""
    total = planned_steps(settings, rows)
    if step >= total:
        return ""
    found = f"the validation loss was no better for {settings.patience} evaluations"
    return f"Training stopped early at step {step:,} of {total:,}: {found}"
