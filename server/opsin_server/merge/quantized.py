"""A base whose weights were rounded before: an adapter is not merged over it unless someone asks for that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from opsin_plugins.loading.quantized.read import PLACES
from opsin_plugins.spec import ModelFiles

PACKED = (
    ".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".qscale_weight", ".SCB",
    ".absmax", ".quant_map",
)  # fmt: skip


def quantized(files: ModelFiles) -> str | None:
    """By what a model is known to be quantized, in a few words; None: it is not."""
    for where, section in _sections(files.config):
        for key in PLACES:
            if (value := section.get(key)) is not None:
                fields = value if isinstance(value, Mapping) else {"quant_method": value}
                scheme = fields.get("quant_method") or fields.get("quant_algo") or fields.get("qformat_weight")
                return f"{where}{key} {str(scheme or 'unnamed')!r}"
    packed = next((key for key, info in files.tensors.items() if info.packing or key.endswith(PACKED)), None)
    return None if packed is None else f"packed weights, as {packed}"


def _sections(config: Mapping[str, object]) -> Iterator[tuple[str, Mapping[str, object]]]:
    yield "", config
    for name, section in config.items():
        if isinstance(section, Mapping):
            yield f"{name}.", section
