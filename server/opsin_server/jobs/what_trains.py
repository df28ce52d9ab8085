"""Which linears of a model get low-rank factors: Unsloth's flags, resolved through the family's groups of layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from opsin_plugins.loading.linears import linears_of
from opsin_plugins.loading.lora_targets import LoraTargets
from opsin_plugins.loading.open_model import OpenModel
from opsin_plugins.spec import SpecError
from opsin_server.errors import BadOption, ConfigError
from opsin_server.jobs.training_options import LARGEST
from opsin_server.option import Option

VISION_LAYER = re.compile(r"vision\.layers\.(\d+)\.")


class WhatTrains(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The names and meanings of Unsloth's FastVisionModel.get_peft_model, and more. Layers that attend to pictures
    outside of the prompt are the language's, unless they are named apart."""

    finetune_vision_layers: Annotated[bool, Option("Train the vision tower's layers.")] = True
    finetune_language_layers: Annotated[bool, Option("Train the decoder's layers.")] = True
    finetune_cross_attention_layers: Annotated[
        bool | None, Option("Train the layers that attend to pictures. Default: as the decoder's.")
    ] = None
    finetune_attention_modules: Annotated[bool, Option("Train attention in these layers.")] = True
    finetune_mlp_modules: Annotated[bool, Option("Train the MLPs of these layers.")] = True
    finetune_projector: Annotated[
        Literal["none", "lora", "full"], Option("Train the projector: not, by LoRA, or all of it.")
    ] = "none"
    freeze_vision_first_n: Annotated[
        Annotated[int, Meta(ge=0, le=LARGEST)],
        Option("Layers of the vision tower, from its input on, that stay as they are."),
    ] = 0
    target_modules: Annotated[
        tuple[str, ...] | None,
        Option("Comma-separated names of the very modules to train, instead of all these.", commas=True),
    ] = None


ALL = WhatTrains()


def trainable_modules(model: OpenModel) -> Mapping[str, str]:
    """Published linears that may be trained, and the group of each."""
    return _targets(model).modules(model.files.tensors)


def chosen_modules(what: WhatTrains, model: OpenModel) -> tuple[str, ...]:
    """Published names. Raises ConfigError for what the model does not have, or that nothing is left of."""
    targets = _targets(model)
    if what.target_modules is not None:
        return _named(what, targets)
    modules = targets.modules(model.files.tensors)
    _check(what, model, set(modules.values()))
    found = tuple(name for name, group in modules.items() if _wanted(what, group) and not _frozen(what, name, targets))
    if not found and what.finetune_projector != "full":
        raise ConfigError("nothing is left to train: at least one kind of layer and one kind of module must be")
    return found


def _targets(model: OpenModel) -> LoraTargets:
    architecture, spec = model.architecture, model.spec
    return LoraTargets(architecture.weights(spec), linears_of(spec, model.registry), architecture.lora_groups(spec))


def _wanted(what: WhatTrains, group: str) -> bool:
    part, _, component = group.partition(".")
    if part == "projector":
        return what.finetune_projector == "lora"
    cross = what.finetune_cross_attention_layers
    parts = {
        "vision": what.finetune_vision_layers,
        "language": what.finetune_language_layers,
        "cross": what.finetune_language_layers if cross is None else cross,
    }
    components = {"attention": what.finetune_attention_modules, "mlp": what.finetune_mlp_modules}
    return parts.get(part, False) and components.get(component, False)


def _frozen(what: WhatTrains, name: str, targets: LoraTargets) -> bool:
    layer = VISION_LAYER.match(targets.find(name)[0].linear)
    return layer is not None and int(layer[1]) < what.freeze_vision_first_n


def _check(what: WhatTrains, model: OpenModel, groups: set[str]) -> None:
    """What is asked for by name must be there."""
    parts, family = {group.partition(".")[0] for group in groups}, model.spec.family
    if what.finetune_cross_attention_layers and "cross" not in parts:
        name = "finetune_cross_attention_layers"
        raise BadOption(name, f"{name}: a model of {family} has none")
    if what.finetune_projector != "none" and model.spec.projector is None:
        raise BadOption("finetune_projector", f"finetune_projector: a model of {family} has none")
    layers = 0 if model.spec.vision is None else model.spec.vision.layers
    if what.freeze_vision_first_n > layers:
        message = f"freeze_vision_first_n {what.freeze_vision_first_n}: the vision tower has {layers} layers"
        raise BadOption("freeze_vision_first_n", message)


def _named(what: WhatTrains, targets: LoraTargets) -> tuple[str, ...]:
    if others := [f for f in what.__struct_fields__ if f != "target_modules" and getattr(what, f) != getattr(ALL, f)]:
        raise _of_targets(f"target_modules says all that is trained: {', '.join(others)} cannot stand beside it")
    names = tuple(dict.fromkeys(what.target_modules or ()))
    if not names:
        raise _of_targets("target_modules names nothing")
    for name in names:
        try:
            places = targets.find(name)
        except SpecError as error:
            raise _of_targets(f"target_modules: {error}") from None
        if len({place.linear for place in places}) > 1:
            raise _of_targets(
                f"target_modules: {name} is published as one but is several linears: it cannot be trained"
            )
    return names


def _of_targets(message: str) -> BadOption:
    return BadOption("target_modules", message)
