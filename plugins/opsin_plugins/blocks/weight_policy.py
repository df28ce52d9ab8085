"""Which format the weight of each linear takes. Modules declare linears; one policy chooses, after they are built."""

from __future__ import annotations

from dataclasses import dataclass

from opsin_plugins.blocks.weight_formats import FORMATS, Dense, WeightFormat

# In 16 bit whatever the rest is. The head's rounding would fall on the logits themselves; tower and projector are few
# weights, run once a picture, and what they lose nothing behind them can mend.
KEPT_DENSE = {"vision.": "vision tower", "projector.": "projector", "decoder.head": "output head"}


@dataclass(frozen=True)
class WeightPolicy:
    """format: the name of what the decoder's linears are stored as (and those of cross-attention)."""

    format: str = Dense.name

    def choose(self, path: str, inputs: int, outputs: int) -> type[WeightFormat]:
        """A weight that the format cannot hold stays as it is."""
        wanted = FORMATS[self.format]
        kept = path.startswith(tuple(KEPT_DENSE))
        return Dense if kept or not wanted.holds(inputs, outputs) else wanted

    def describe(self, dtype: str) -> str:
        """For the operator: what is stored how. dtype: the name of the type that is not quantized."""
        return (
            dtype if self.format == Dense.name else f"{self.format} decoder; {dtype} {', '.join(KEPT_DENSE.values())}"
        )
