"""The check against transformers, where it is installed and knows the model: the same weights, the same logits."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from opsin_plugins.conformance.batches import Prompt, whole
from opsin_plugins.conformance.subject import Subject
from opsin_plugins.conformance.verdicts import Failed, Skipped, near
from opsin_plugins.spec import ModelSpec, VisualItem

LIMIT = 1e-4


@torch.no_grad()
def transformers(subject: Subject) -> str:
    """Logits of a text and, where it is known how to hand them over, of a picture."""
    assert subject.model  # writes the checkpoint that both read
    theirs = _theirs(subject)
    text = next(p for p in subject.prompts if not p.items)
    errors = [_compared("text", subject, theirs, text, {})]
    if subject.spec.vision is None:
        return f"within {errors[0]:.0e}"
    asked = next(p for p in subject.prompts if len(p.items) == 1)
    inputs = _picture_inputs(subject.spec, asked, set(inspect.signature(theirs.forward).parameters))
    if inputs is None:
        return f"text within {errors[0]:.0e}; how its pictures are handed over is not known here"
    errors.append(_compared("text and a picture", subject, theirs, asked, inputs))
    return f"text and a picture within {max(errors):.0e}"


def _compared(what: str, subject: Subject, theirs: Any, prompt: Prompt, inputs: dict[str, Tensor]) -> float:
    ids = torch.from_numpy(prompt.expanded.ids).long()[None]
    (ours,) = whole(subject.model, [prompt])
    return near(f"logits of {what}, here and in transformers,", ours, theirs(input_ids=ids, **inputs).logits[0], LIMIT)


def _theirs(subject: Subject) -> Any:
    try:
        import transformers as library
    except ImportError:
        raise Skipped("transformers is not installed") from None
    hf: Any = library
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    kind = str(subject.example.config.get("model_type"))
    auto = hf.AutoModelForCausalLM if subject.spec.vision is None else hf.AutoModelForImageTextToText
    if kind not in hf.CONFIG_MAPPING or type(hf.CONFIG_MAPPING[kind]()) not in auto._model_mapping:
        raise Skipped(f"transformers does not know model_type {kind!r}")
    model, found = auto.from_pretrained(
        subject.directory, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    if found["unexpected_keys"]:
        names = sorted(found["unexpected_keys"])
        raise Failed(f"transformers has no place for {len(names)} of the published names: {', '.join(names[:6])}")
    return model.eval()


def _picture_inputs(spec: ModelSpec, asked: Prompt, takes: set[str]) -> dict[str, Tensor] | None:
    """None: a form that is not known here, such as tiles."""
    (item,) = asked.items
    if spec.image is None or spec.vision is None or spec.image.resize == "tiles" or item.grid[0] != 1:
        return None
    if "image_grid_thw" in takes:  # patches side by side, as Qwen2-VL takes them
        patches = _normalised(item, spec)[:, :, None].expand(-1, -1, spec.vision.temporal, -1, -1).flatten(1)
        inputs = {"pixel_values": patches, "image_grid_thw": torch.tensor([item.grid])}
    elif "pixel_values" in takes:
        pixels = _whole(item, spec)
        inputs = {"pixel_values": pixels}
        if spec.image.resizable:  # LLaVA takes sizes too, and hands them to towers of one size, which refuse them
            inputs["image_sizes"] = torch.tensor([pixels.shape[2:]])
    else:
        return None
    inputs["mm_token_type_ids"] = torch.from_numpy(asked.expanded.ids == spec.image_token).int()[None]
    return {name: value for name, value in inputs.items() if name in takes}


def _normalised(item: VisualItem, spec: ModelSpec) -> Tensor:
    """F32 [N, C, p, p]."""
    assert spec.vision is not None
    patches = torch.from_numpy(item.pixels).view(-1, spec.vision.channels, spec.vision.patch, spec.vision.patch)
    mean, std = (torch.tensor(x)[:, None, None] for x in (spec.vision.mean, spec.vision.std))
    return (patches.float() / 255 - mean) / std


def _whole(item: VisualItem, spec: ModelSpec) -> Tensor:
    """F32 [1, C, H, W]: the patches back in their places."""
    assert spec.image is not None
    patches, (_, rows, columns), m = _normalised(item, spec), item.grid, spec.image.merge
    _, c, p, _ = patches.shape
    split = patches.view(rows // m, columns // m, m, m, c, p, p)
    return split.permute(4, 0, 2, 5, 1, 3, 6).reshape(1, c, rows * p, columns * p)
