"""A checkpoint directory opened: which family reads it, and what model that family says it is. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from opsin_plugins.loading.files import read_model_files
from opsin_plugins.loading.registry import PluginError, Registry
from opsin_plugins.spec import Architecture, ModelFiles, ModelSpec, SpecError

Spec = TypeVar("Spec")


@dataclass(frozen=True)
class OpenModel:
    """The registry has the plugins that the operator allows; the spec's encoder and fusion are among them."""

    registry: Registry
    files: ModelFiles
    architecture: Architecture
    spec: ModelSpec


def open_model(
    directory: Path,
    plugins: Iterable[str] | None = None,
    options: Mapping[str, str] | None = None,
    mmproj: Path | None = None,
) -> OpenModel:
    """plugins: the only ones that may be used (`--plugins`); None: all that are installed. options: of the family.
    mmproj: the vision tower of a model that is a GGUF.

    Raises SpecError, with a sentence for the operator, whatever it is that cannot be opened."""
    registry = Registry(plugins)
    return open_files(read_model_files(directory, options, mmproj), registry)


def open_files(files: ModelFiles, registry: Registry) -> OpenModel:
    """As `open_model`, of files that are read, or that are yet to be written. Raises SpecError."""
    files = replace(files, plugins=registry.allowed)
    architecture = registry.architecture(files)
    _check_options(files.options, getattr(architecture, "options", {}))
    spec = described("architecture", architecture.name, lambda: architecture.spec(files), files)
    if spec.encoder is not None and spec.fusion is not None:  # a family may name what the operator does not allow
        registry.encoder(spec.encoder)
        registry.fusion(spec.fusion)
    return OpenModel(registry, files, architecture, spec)


def _check_options(options: Mapping[str, str], allowed: Mapping[str, Sequence[str]]) -> None:
    for name, value in options.items():
        if name not in allowed:
            raise SpecError(f"--model-option {name}: there are {', '.join(sorted(allowed)) or 'none'}")
        if value not in allowed[name]:
            raise SpecError(f"--model-option {name}={value}: it is one of {', '.join(allowed[name])}")


def described(kind: str, name: str, describe: Callable[[], Spec], files: ModelFiles) -> Spec:
    """What a plugin says that a checkpoint is. Raises SpecError, whatever the plugin raises."""
    try:
        return describe()
    except SpecError:
        raise
    except Exception as error:  # a stranger's code, or a configuration that nobody thought of
        raise PluginError(
            f"{kind} {name!r} cannot describe {files.directory}: {type(error).__name__}: {error}"
        ) from error
