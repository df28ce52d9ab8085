"""What a training run is to do, as it crosses the door: what trains, how, and how long."""

from __future__ import annotations

from typing import Literal

import msgspec

Schedule = Literal["cosine", "linear", "constant"]
Initialization = Literal["default", "gaussian"]
START = "start"  # the folder, in a run's own, of an adapter that it trains on from
Method = Literal["supervised", "dpo"]


class TrainingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """modules: published linears that get low-rank factors, by name. full_projector: the projector is trained whole.

    rank, alpha: of every module; with rslora the scale is alpha / √rank in place of alpha / rank. Rates are of AdamW;
    those of vision and projector are factors of learning_rate, as is that of B over A (lora_plus_ratio). warmup: steps.
    batch_size: rows of an optimizer step. epochs, or max_steps where it is given.

    evaluate_every, save_every: steps; None: at the end of each epoch. patience: evaluations in a row that are no better
    than the best, after which training ends; None: it does not. keep_checkpoints: the newest, and the best.
    micro_batch_tokens: rows are packed up to so many, unless one alone has more. start: the digest of an adapter with
    these very modules, rank and scale, which lies in the run's folder and is trained on from; empty: none.
    """

    modules: tuple[str, ...]
    full_projector: bool = False
    rank: int = 16
    alpha: float = 16.0
    rslora: bool = False
    dropout: float = 0.0
    initialization: Initialization = "default"
    method: Method = "supervised"
    beta: float = 0.1  # of DPO
    learning_rate: float = 2e-4
    vision_rate: float = 0.1
    projector_rate: float = 0.1
    lora_plus_ratio: float = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    max_gradient_norm: float = 1.0  # 0: gradients are not clipped
    schedule: Schedule = "cosine"
    warmup: int = 0
    batch_size: int = 8
    epochs: int = 3
    max_steps: int | None = None
    seed: int = 0
    evaluate_every: int | None = None
    save_every: int | None = None
    patience: int | None = None
    keep_checkpoints: int = 3
    micro_batch_tokens: int = 1024
    start: str = ""

    @property
    def scale(self) -> float:
        """Of what the factors add."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)
