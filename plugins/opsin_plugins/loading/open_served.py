"""A checkpoint directory opened as what it is: a model that answers, or a dual encoder. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.open_model import OpenModel, described, open_files
from opsin_plugins.loading.registry import Registry
from opsin_plugins.spec import DualEncoder, DualEncoderSpec, ModelFiles, SpecError


@dataclass(frozen=True)
class OpenDualEncoder:
    """The registry has the plugins that the operator allows; the spec's encoder is among them."""

    registry: Registry
    files: ModelFiles
    family: DualEncoder
    spec: DualEncoderSpec


def open_served(
    directory: Path,
    plugins: Iterable[str] | None = None,
    options: Mapping[str, str] | None = None,
    mmproj: Path | None = None,
) -> OpenModel | OpenDualEncoder:
    """As `open_model`. Raises SpecError, with a sentence for the operator, whatever it is that cannot be opened."""
    registry = Registry(plugins)
    files = read_model_files(directory, options, mmproj)
    family = registry.dual_encoder(files)
    return open_files(files, registry) if family is None else _opened(family, files, registry)


def _opened(family: DualEncoder, files: ModelFiles, registry: Registry) -> OpenDualEncoder:
    if files.options:
        raise SpecError(f"--model-option {next(iter(files.options))}: a dual encoder has none")
    files = replace(files, plugins=registry.allowed)
    spec = described("dual encoder", family.name, lambda: family.spec(files), files)
    registry.encoder(spec.encoder)  # a family may name what the operator does not allow
    return OpenDualEncoder(registry, files, family, spec)
