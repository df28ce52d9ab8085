"""Keys of adapter files: which module each is of, and what it holds; the names that modules have had.

The path in a key is that of a module in the classes of whoever trained, which are not the names that checkpoints have:
transformers moved a VLM's language model and tower in 4.52 and again in 5, and LLaVA's own code has names of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Half = Literal["a", "b", "whole", "base"]
WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
OUTER = ("base_model.model.", "module.")
LORA = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
BASE = re.compile(r"(?P<module>.+)\.base_layer\.(?P<kind>weight|bias)")
WHOLE = re.compile(r"(?P<module>.+?)\.(?:modules_to_save\.[^.]+|original_module)\.(?P<rest>.+)")
OTHERS = {
    "lora_magnitude_vector": "DoRA's magnitudes",
    "lora_embedding_A": "LoRA of an embedding",
    "lora_embedding_B": "LoRA of an embedding",
    "token_adapter": "trained tokens",
    "trainable_tokens_delta": "trained tokens",
    "lora_E": "AdaLoRA's singular values",
    "ranknum": "AdaLoRA's ranks",
}

# What stands before the layers of a language model, before a tower's, and what leads to the head, in all that is
# published; and what LLaVA's own code calls the projector.
LANGUAGE = (
    "model.language_model.model.", "model.language_model.", "language_model.model.", "language_model.",
    "model.text_model.", "text_model.", "model.", "",
)  # fmt: skip
TOWERS = (
    "model.vision_tower.vision_tower.vision_model.", "model.vision_tower.vision_model.", "vision_tower.vision_model.",
    "model.vision_tower.", "vision_tower.", "model.vision_model.", "vision_model.", "model.visual.", "visual.",
)  # fmt: skip
HEADS = ("lm_head", "language_model.lm_head", "model.language_model.lm_head", "model.lm_head")
PROJECTORS = {
    "mm_projector.0": "multi_modal_projector.linear_1",
    "mm_projector.2": "multi_modal_projector.linear_2",
    "connector": "model.connector",
}
LAYERS = re.compile(r"layers\.\d+\.")
TOWER_LAYERS = re.compile(
    r"(encoder\.layers|(global_)?transformer\.layers|transformer\.resblocks|blocks)\.\d+\.|patch_|head\."
)


@dataclass(frozen=True)
class AdapterKey:
    """half: of low-rank factors; "whole": a tensor that was trained itself, under its name; "base": a copy of one of
    the base model's. why_not: what it is, where it is nothing that can be served."""

    key: str
    module: str
    half: Half
    why_not: str = ""


def read_key(key: str) -> AdapterKey:
    name = WRAPPERS.sub(r"\1", key)
    name = re.sub(r"\.{2,}", ".", name).removeprefix(".")
    while any(name.startswith(outer) for outer in OUTER):
        name = next(name.removeprefix(outer) for outer in OUTER if name.startswith(outer))
    if why := next((why for part, why in OTHERS.items() if part in name.split(".")), ""):
        return AdapterKey(key, name, "whole", why)
    if found := LORA.fullmatch(name):
        return AdapterKey(key, found["module"], "a" if found["half"] == "A" else "b")
    if "lora_" in name:
        return AdapterKey(key, name, "whole", "LoRA of no linear layer, or a bias of B")
    if found := BASE.fullmatch(name):
        return AdapterKey(key, f"{found['module']}.{found['kind']}", "base")
    if found := WHOLE.fullmatch(name):
        half: Half = "base" if ".original_module." in name else "whole"
        return AdapterKey(key, f"{found['module']}.{found['rest']}", half)
    return AdapterKey(key, name, "whole")


def published_names(module: str) -> Iterator[str]:
    """The names under which a module or tensor may be known, its own first, each once."""
    seen = {module}
    yield module
    for other in _others(module):
        if other not in seen:
            seen.add(other)
            yield other


def _others(module: str) -> Iterator[str]:
    for prefix in TOWERS:
        rest = module.removeprefix(prefix)
        if rest != module and TOWER_LAYERS.match(rest):
            yield from (other + rest for other in TOWERS)
            return
    for llavas, other in PROJECTORS.items():
        rest = module.removeprefix("model.").removeprefix(llavas)
        if rest != module.removeprefix("model.") and rest[:1] in ("", "."):
            yield other + rest
            return
    for prefix in LANGUAGE:
        rest = module.removeprefix(prefix)
        if (rest != module or not prefix) and LAYERS.match(rest):
            yield from (other + rest for other in LANGUAGE)
            return
    for head in HEADS:
        if module == head or module.startswith(f"{head}."):
            yield from (other + module[len(head) :] for other in HEADS)
            return
