"""One training step: draw, forward, backward, two optimizers."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration

from mini_opsin import curriculum
from mini_opsin.batches import Form, chat_batch, picture_batch
from mini_opsin.encoder import Encoder
from mini_opsin.fonts import Fonts
from mini_opsin.losses import Losses
from mini_opsin.model import Heads, Sizes, initialise, make_config
from mini_opsin.optim import Muon, split
from mini_opsin.ranks import average_gradients, world

BUDGET = 96  # text tokens a row
PIXELS = 5120  # a picture of this many pixels comes in batches of the plan's number
CLIP = 5.0


@dataclass(frozen=True)
class Settings:
    device: str = "cpu"
    bf16: bool = True
    batch_scale: float = 1.0  # a rank's share of the curriculum's pictures a step
    seed: int = 1
    muon_lr: float = 0.01
    adam_lr: float = 0.002


class Trainer:
    """The model, its heads and optimizers, and how far they have come."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, sizes: Sizes, settings: Settings, fonts: Fonts) -> None:
        self.settings, self.sizes, self.fonts = settings, sizes, fonts
        self.rank, self.ranks = world()
        self.encoder = Encoder(tokenizer)
        self.model = Qwen2VLForConditionalGeneration(make_config(tokenizer, sizes))
        initialise(self.model, tokenizer, settings.seed)
        torch.manual_seed(settings.seed)
        self.heads = Heads(sizes)
        nn.Module.to(self.model, settings.device)  # transformers annotates its own `to` wrongly
        self.heads.to(settings.device)
        named = [*self.model.named_parameters(), *((f"heads.{n}", p) for n, p in self.heads.named_parameters())]
        self.named = dict(named)
        inside, rest = split(named)
        self.muon = Muon(inside, settings.muon_lr)
        self.adam = torch.optim.AdamW([p for _, p in rest], settings.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.adam_named = dict(rest)
        self.dtype = torch.bfloat16 if settings.bf16 else torch.float32
        self.losses = Losses(self.model, self.heads, sizes, tokenizer, self.dtype)
        self.rng = random.Random(settings.seed * 1000 + self.rank + 1)
        self.step, self.images, self.questions, self.fraction = 0, 0, 0, 0.0

    def reseed(self) -> None:
        """After a resume: new pictures, not those of step 0 again."""
        self.rng = random.Random(f"{self.settings.seed} {self.rank} {self.step}")

    def form(self, plan: curriculum.Plan, fraction: float) -> Form:
        """About equal work a step: the smaller the pictures, the more of them."""
        pair = fraction > curriculum.PAIRS_FROM and (self.step + 3 * self.rank) % 7 == 0
        size = self.rng.choice(plan.sizes)
        wanted = self.settings.batch_scale * plan.pictures * min(1.6, PIXELS / (size[0] * size[1]))
        n = max(12, int(wanted)) // 2 * 2
        return Form(size, n, max(8, int(n * plan.asked)), BUDGET, pair)

    def train_step(self, fraction: float) -> dict[str, float]:
        """One step at this share of the schedule; the parts of its loss."""
        plan = curriculum.plan(fraction, self.rng)
        form = self.form(plan, fraction)
        batch = picture_batch(self.encoder, self.rng, plan.stage, form, self.fonts)
        loss, parts = self.losses.of_pictures(batch, plan.aux)
        torch.autograd.backward(loss)
        if (self.step + self.rank) % 5 == 0:
            torch.autograd.backward(self.losses.of_chat(chat_batch(self.encoder, self.rng, 6, BUDGET)))
        average_gradients(self.named.values())
        parts["grad"] = float(nn.utils.clip_grad_norm_(self.named.values(), CLIP))
        self.update(curriculum.learning_rate(fraction, self.step))
        self.step, self.fraction = self.step + 1, fraction
        self.images += form.pictures * self.ranks
        self.questions += len(batch.packed.asked) * self.ranks
        return parts

    def update(self, factor: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = self.settings.adam_lr * factor
        self.muon.step(factor)
        self.adam.step()
        for p in self.named.values():
            p.grad = None
