"""What a batch is trained on: the answers, and what the states inside must know so that answers can be right."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration

from mini_opsin.batches import Batch
from mini_opsin.forward import EMBEDDING, Weights, by_row, cast, decoder, vision
from mini_opsin.labels import CLASSES, IGNORE
from mini_opsin.model import Heads, Sizes
from mini_opsin.packing import Packed
from mini_opsin.tokenizer import SPACE
from mini_opsin.words import COLOURS

SHARES = {
    "patch_class": 0.5,
    "patch_colour": 0.3,
    "token_class": 0.6,
    "token_colour": 0.5,
    "ordinal": 0.3,
    "position": 0.1,
    "noun": 0.2,
    "place": 0.15,
}
PROBES = ("noun_count", "noun_row", "noun_column", "noun_colour", "noun_class", "beside", "above", "third_x", "third_y")
CHAT_SHARE = 0.15


class Losses:
    """The losses of one model and its heads; both are trained through them."""

    def __init__(
        self,
        model: Qwen2VLForConditionalGeneration,
        heads: Heads,
        sizes: Sizes,
        tokenizer: PreTrainedTokenizerFast,
        dtype: torch.dtype,
    ) -> None:
        self.model, self.heads, self.sizes, self.dtype = model, heads, sizes, dtype
        self.table = dict(model.named_parameters())[EMBEDDING]
        self.device = self.table.device
        # The classes' words, for the alignment of visual tokens with the embedding table.
        ids = tokenizer.get_vocab()
        named = [ids[c if len(c) == 1 else SPACE + c] for c in CLASSES]
        self.class_ids = torch.tensor(named, device=self.device)
        self.colour_ids = torch.tensor([ids[SPACE + c] for c in COLOURS], device=self.device)
        self.class_weight = torch.ones(len(CLASSES) + 1, device=self.device)
        self.class_weight[0] = 0.2  # most patches show nothing

    def of_pictures(self, batch: Batch, aux: float) -> tuple[Tensor, dict[str, float]]:
        """The total with the auxiliary losses at weight `aux`, and every part of it for the log."""
        w = cast(self.model, self.dtype)
        patches, visual = vision(w, self.sizes, batch.pixels.to(self.device))
        parts = self.dense(batch, patches, visual)
        layout = batch.packed.layout
        out = decoder(w, self.sizes, layout, by_row(layout, visual, batch.images_per_row))
        assert out.visual is not None
        parts["text"] = self.text(w, out.final, batch.packed)
        parts["position"] = self.position(batch, out.visual)
        nouns = probe(self.heads.noun, out.middle, batch.nouns.at, batch.nouns.targets)
        places = probe(self.heads.place, out.late, batch.nouns.at, batch.nouns.places)
        parts["noun"] = nouns[0] + 0.5 * (nouns[1] + nouns[2]) + nouns[3] + 0.5 * nouns[4]
        parts["place"] = places[0] + places[1] + 0.5 * (places[2] + places[3])
        auxiliary = sum((share * parts[name] for name, share in SHARES.items()), torch.zeros((), device=self.device))
        total = parts["text"] + 0.1 * parts["scale"] + aux * auxiliary
        logged = parts | dict(zip(PROBES, [*nouns, *places], strict=True))
        return total, {name: float(v.detach()) for name, v in logged.items()}

    def of_chat(self, packed: Packed) -> Tensor:
        w = cast(self.model, self.dtype)
        return CHAT_SHARE * self.text(w, decoder(w, self.sizes, packed.layout, None).final, packed)

    def text(self, w: Weights, hidden: Tensor, packed: Packed) -> Tensor:
        logits = hidden.flatten(0, 1)[packed.target_at.to(self.device)] @ w[EMBEDDING].T
        loss = F.cross_entropy(logits.float(), packed.target.to(self.device), reduction="none")
        weight = packed.weight.to(self.device)
        return (loss * weight).sum() / weight.sum()

    def dense(self, batch: Batch, patches: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """What each patch and each visual token shows. Visual tokens are read with the words' own embeddings, so that
        'red' and 'circle' in a question can find them by content."""
        heads, table, labels, d = self.heads, self.table, batch.labels, self.device
        classes = torch.cat([heads.nothing, table[self.class_ids]])
        scale = 4 * heads.log_scale.exp()
        x, v = patches.float(), visual.float()
        on_things = labels.token_colour.masked_fill(labels.token_class == 0, IGNORE).to(d)
        return {
            "patch_class": self.classified(heads.patch_class(x), labels.patch_class),
            "patch_colour": cross_entropy(heads.patch_colour(x), labels.patch_colour.to(d)),
            "token_class": self.classified(scale[0] * v @ classes.T, labels.token_class),
            "token_colour": cross_entropy(scale[1] * v @ table[self.colour_ids].T, on_things),
            "ordinal": F.cross_entropy(heads.ordinal(v).flatten(0, 1), labels.ordinal.flatten().to(d)),
            # Keeps visual embeddings at the scale of text embeddings.
            "scale": (v.pow(2).mean().log() - table.detach().pow(2).mean().log()).pow(2) / 4,
        }

    def classified(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), target.flatten().to(self.device), self.class_weight)

    def position(self, batch: Batch, visual: Tensor) -> Tensor:
        """Every visual token must know its row and column after the first decoder layer: the tower's own positions
        are only relative."""
        rows, columns = batch.packed.layout.grid
        r, c = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        n, x = visual.shape[0] * batch.images_per_row, visual.float()
        loss = F.cross_entropy(self.heads.row(x).flatten(0, 1), r.flatten().repeat(n).to(self.device))
        return loss + F.cross_entropy(self.heads.column(x).flatten(0, 1), c.flatten().repeat(n).to(self.device))


def probe(heads: nn.ModuleList, hidden: Tensor, at: Tensor, targets: Tensor) -> list[Tensor]:
    """The losses of heads that read hidden [R, T, D] at the nouns.

    After the middle layer a noun must have found its thing (how many, where, which colour and class), and before the
    last layer how that lies to the thing named before it. Without this push, "what color is the circle" stays at a
    guess among the colours present.
    """
    x = hidden.flatten(0, 1)[at.to(hidden.device)].float()
    return [cross_entropy(head(x), targets[:, i].to(hidden.device)) for i, head in enumerate(heads)]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the targets that are known; zero where none is (F.cross_entropy would give nan)."""
    known = target.flatten() != IGNORE
    if not bool(known.any()):
        return logits.sum() * 0
    return F.cross_entropy(logits.flatten(0, -2)[known], target.flatten()[known])
