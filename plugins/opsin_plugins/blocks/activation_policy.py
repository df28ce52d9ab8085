"""Which weights of 8 bits are multiplied with activations of 8 bits (W8A8)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from opsin_kernels.w8a8_linear import LEAST_GROUP, MOST_INPUTS
from opsin_plugins.spec import CodeForm


@dataclass(frozen=True)
class ActivationPolicy:
    """kinds: of codes that the device multiplies with each other, "int8" and "fp8"; none: activations stay as they are.
    always: also where a checkpoint does not declare it, and where weights are quantized on the spot."""

    kinds: frozenset[str] = frozenset()
    always: bool = False

    def settled(self, form: CodeForm, inputs: int) -> CodeForm:
        """A weight that the product cannot take so keeps activations as they are."""
        wanted = (form.activations or self.always) and form.codes in self.kinds
        return replace(form, activations=wanted and multiplies_codes(form, inputs))


def multiplies_codes(form: CodeForm, inputs: int) -> bool:
    """Whether the product of codes takes a weight: one without offsets or an order of its inputs, in rows or large
    groups."""
    large = form.group == inputs or (form.group >= LEAST_GROUP and form.group % LEAST_GROUP == 0)
    return large and not form.offset and not form.ordered and inputs <= MOST_INPUTS
