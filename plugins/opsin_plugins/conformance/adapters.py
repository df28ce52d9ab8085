"""Checks of adapters: which linears there are, and that several adapters in one batch equal merged weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from opsin_plugins.blocks.adapter_slots import AdapterSlots, AdapterWeights, Factors
from opsin_plugins.blocks.checkpoint import targets as targets_of
from opsin_plugins.blocks.decoder import HEAD
from opsin_plugins.blocks.linear import Linear
from opsin_plugins.blocks.model import Model
from opsin_plugins.blocks.trained_projectors import PREFIX, TrainedProjectors, tensors_of
from opsin_plugins.blocks.weight_format import Dense
from opsin_plugins.conformance.batches import Adapters, paged, whole
from opsin_plugins.conformance.declarations import bare
from opsin_plugins.conformance.subject import Subject
from opsin_plugins.conformance.verdicts import Failed, same
from opsin_plugins.loading.lora_targets import LoraTargets
from opsin_plugins.spec import Linears, SpecError

LIMIT = 1e-4
RANKS = (3, 5)
CHUNK = 3


def linears(subject: Subject) -> str:
    """Those that the spec lists are there, in these shapes, and each published one of a LoRA group is among them."""
    built = {path: m for path, m in subject.sketch.named_modules() if isinstance(m, Linear)}
    for name, shape in subject.linears.items():
        if name == HEAD and subject.spec.decoder.tied:
            continue
        if name not in built:
            raise Failed(f"{name} is listed (by `linears` of encoder, projector or fusion), and the model has none")
        module = built[name]
        same(f"the shape of {name}", (module.inputs, module.segments), (shape.inputs, shape.segments))
    targets = LoraTargets(subject.rules, subject.linears, subject.architecture.lora_groups(subject.spec))
    for name in {bare(key) for key in subject.published}:
        if targets.group(name) is not None:
            targets.find(name)
    if (projector := subject.spec.projector) is not None:
        own = {name: place.shape for name, place in targets_of(subject.sketch).items() if name.startswith(PREFIX)}
        same(
            "the projector's parameters", own, {PREFIX + name: shape for name, shape in projector.parameters().items()}
        )
    unlisted = len(built.keys() - subject.linears.keys())
    return f"{len(subject.linears)} listed{f', {unlisted} that no adapter changes' if unlisted else ''}"


@torch.no_grad()
def adapters(subject: Subject) -> str:
    """Two of different rank, the second with a projector of its own, and the base model, in one batch: each prompt as
    with weights into which its adapter is merged; and with a paged pool of keys and values."""
    made = [AdapterWeights(random_adapter(subject.linears, rank, seed)) for seed, rank in enumerate(RANKS)]
    made[-1] = AdapterWeights(made[-1].factors, random_projector(subject, len(made)))
    expected = [whole(subject.model, subject.prompts), *(whole(merged(subject, one), subject.prompts) for one in made)]
    prompts = [prompt for prompt in subject.prompts for _ in expected]
    projectors = None
    if subject.spec.projector is not None:
        projectors = TrainedProjectors(subject.model, len(made), torch.device("cpu"), torch.float32)
    slots = AdapterSlots(subject.linears, len(made), max(RANKS), projectors=projectors)
    for number, one in enumerate(made, 1):
        slots.load(number, one)
    chosen = Adapters(slots, list(range(len(expected))) * len(subject.prompts))
    errors = []
    for got in (whole(subject.model, prompts, chosen), paged(subject.model, prompts, CHUNK, chosen)):
        for number, logits in enumerate(got):
            prompt, slot = divmod(number, len(expected))
            errors.append(float((logits - expected[slot][prompt]).abs().max()))
    if not max(errors) <= LIMIT:
        raise Failed(_blamed(subject, max(errors)))
    return f"{len(subject.linears)} linears, within {max(errors):.0e}"


def _blamed(subject: Subject, error: float) -> str:
    """Which linears it is, each tried alone."""
    base = whole(subject.model, subject.prompts)
    deaf: list[str] = []
    wrong: list[str] = []
    for name, shape in subject.linears.items():
        one = AdapterWeights(random_adapter({name: shape}, RANKS[0], 0))
        slots = AdapterSlots(subject.linears, 1, RANKS[0])
        slots.load(1, one)
        try:
            got = whole(subject.model, subject.prompts, Adapters(slots, [1] * len(subject.prompts)))
        except SpecError as failure:
            return str(failure)
        expected = whole(merged(subject, one), subject.prompts)
        if _distance(got, expected) > LIMIT:
            (deaf if _distance(got, base) == 0 else wrong).append(name)
    if deaf:
        return f"no adapter reaches {_few(deaf)}: its `Linear` is not handed the Lora that the module gets"
    blamed = f": {_few(wrong)}" if wrong else ", though each linear alone does not"
    return f"logits with adapters and with merged weights differ by {error:.2g}; the limit is {LIMIT:g}{blamed}"


def _distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def random_adapter(linears: Linears, rank: int, seed: int) -> dict[str, list[Factors | None]]:
    """Of every linear and segment, large enough that one that is left out shows."""
    generator = torch.Generator().manual_seed(seed)

    def factors(inputs: int, outputs: int) -> Factors:
        a = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
        return Factors(a, torch.randn(rank, outputs, generator=generator) * 0.3)

    return {name: [factors(shape.inputs, n) for n in shape.segments] for name, shape in linears.items()}


def random_projector(subject: Subject, seed: int) -> dict[str, Tensor]:
    """Parameters of a trained one, near to the model's; none of a model without a projector."""
    projector = subject.model.projector
    if projector is None:
        return {}
    assert isinstance(projector, torch.nn.Module)
    generator = torch.Generator().manual_seed(seed)
    own = tensors_of(projector)
    return {f"{PREFIX}{k}": t + 0.3 * t.std() * torch.randn(t.shape, generator=generator) for k, t in own.items()}


def merged(subject: Subject, adapter: AdapterWeights) -> Model:
    """A model of its own whose weights hold the adapter."""
    model = subject.load()
    if model.decoder.head is None and HEAD in adapter.factors:  # tied: the embedding must stay as it is
        model.decoder.head = Linear(subject.spec.decoder.width, [subject.spec.decoder.vocab])
        model.decoder.head.allocate(HEAD, Dense)
        model.decoder.head.fill([model.decoder.embedding.stored.dequantized()[: subject.spec.decoder.vocab]])
    places = targets_of(model)
    for name, tensor in adapter.projector.items():
        places[name].fill([tensor])
    modules = dict(model.named_modules())
    for name, given in adapter.factors.items():
        add_to(modules[name], given)
    return model


def add_to(linear: object, given: Iterable[Factors | None]) -> None:
    """Adds an adapter's product to a dense weight."""
    assert isinstance(linear, Linear)
    assert isinstance(linear.stored, Dense)
    ends = accumulate(linear.segments)
    for factors, end, size in zip(given, ends, linear.segments, strict=True):
        if factors is not None:
            linear.stored.weight.data[end - size : end] += (factors.b.t() @ factors.a).to(linear.stored.weight.dtype)
