"""Finds plugins by their entry points: names are read without import, and only what is used is imported.

An architecture's entry point is named after what it claims: `llava` (a model_type), `llava.pixtral` (model_type and
the vision configuration's model_type), `qwen.visual` (model_type and a key that the configuration must have). The
longest name that matches wins. Two distributions that claim one name are an error for that name alone.

What a vision encoder claims stands in its EncoderSpec. So when a family asks which encoder reads a model_type, those
that are allowed are imported, unless one has the model_type for its name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Literal, cast

from opsin_plugins.spec import (
    API_VERSION,
    Architecture,
    DualEncoder,
    EncoderSpec,
    FusionStrategy,
    ModelFiles,
    SpecError,
    VisionEncoder,
)

Kind = Literal["architecture", "vision encoder", "fusion", "dual encoder"]
GROUPS: Mapping[Kind, str] = {
    "architecture": "opsin.architectures",
    "vision encoder": "opsin.vision_encoders",
    "fusion": "opsin.fusions",
    "dual encoder": "opsin.dual_encoders",
}


MEMBERS: Mapping[Kind, tuple[str, ...]] = {
    "architecture": ("name", "spec", "weights", "preprocess", "expand", "positions", "lora_groups", "chat_template"),
    "vision encoder": ("name", "builder", "claims", "spec", "image", "preprocess", "weights"),
    "fusion": ("name", "builder"),
    "dual encoder": ("name", "builder", "spec", "weights", "preprocess"),
}


class PluginError(SpecError):
    """A plugin that is missing, claimed twice, of another api version, or broken at import."""


@dataclass(frozen=True)
class PluginStatus:
    """One row of `opsin plugins`."""

    kind: Kind
    name: str
    distribution: str
    version: str
    error: str | None


class Registry:
    def __init__(
        self,
        allow: Iterable[str] | None = None,
        entry_points: Callable[[str], Iterable[metadata.EntryPoint]] | None = None,
    ) -> None:
        """allow: the only plugin names that may be used (`--plugins`); None allows all that are installed. Raises
        PluginError for a name that is not installed."""
        entry_points = entry_points or _entry_points
        allowed = None if allow is None else frozenset(allow)
        found = {point.name for group in GROUPS.values() for point in entry_points(group)}
        if allowed is not None and (unknown := sorted(allowed - found)):
            raise PluginError(f"--plugins names {', '.join(unknown)}; installed are {', '.join(sorted(found))}")
        self.allowed = allowed
        self._points: dict[Kind, dict[str, list[metadata.EntryPoint]]] = {}
        self._failed: dict[tuple[Kind, str], str] = {}  # what was tried
        self._closed: list[metadata.EntryPoint] = []  # architectures that are installed and not allowed
        for kind, group in GROUPS.items():
            claims: dict[str, list[metadata.EntryPoint]] = {}
            for point in entry_points(group):
                if allowed is None or point.name in allowed:
                    claims.setdefault(point.name, []).append(point)
                elif kind == "architecture":
                    self._closed.append(point)
            self._points[kind] = claims

    def architecture(self, files: ModelFiles) -> Architecture:
        """The family that claims this checkpoint. Raises PluginError when none does."""
        claimed = [name for name in self._points["architecture"] if _claims(name, files.config)]
        if not claimed:
            remote = " (its auto_map names code of its own, which is never run)" if "auto_map" in files.config else ""
            closed = [point for point in self._closed if _claims(point.name, files.config)]
            hints = [f"{point.name!r} of {_owner(point)} does, and --plugins leaves it out" for point in closed]
            usable = f"usable: {', '.join(sorted(self._points['architecture'])) or 'none'}"
            why = f"no architecture plugin claims model_type {files.config.get('model_type')!r}{remote}"
            if any(_claims(name, files.config) for name in self._points["dual encoder"]):
                why += " (a dual encoder's, which is served for its embeddings, and no more)"
            raise PluginError("; ".join([why, *hints, usable, *self._faults("architecture")]))
        return cast("Architecture", self._load("architecture", max(claimed, key=len)))

    def dual_encoder(self, files: ModelFiles) -> DualEncoder | None:
        """What claims this checkpoint as a text tower and a vision tower; None: nothing does. Raises PluginError for
        one that does not load."""
        claimed = [name for name in self._points["dual encoder"] if _claims(name, files.config)]
        return cast("DualEncoder", self._load("dual encoder", max(claimed, key=len))) if claimed else None

    def encoder(self, name: str) -> VisionEncoder:
        return cast("VisionEncoder", self._load("vision encoder", name))

    def find_encoder(self, model_type: str, *, part: bool = False) -> VisionEncoder | None:
        """The encoder whose claims name a vision configuration's model_type. part: that of a checkpoint of which the
        tower is one part. None: there is none among those that load. Raises PluginError when two do.

        One whose entry point has the very name comes before the others.
        """
        claimants = []
        for name, encoder in self._encoders(first=model_type):
            if isinstance(encoder, PluginError):
                continue
            claims = encoder.claims
            if model_type in (claims.checkpoint_types if part else claims.model_types):
                if name == model_type:
                    return encoder
                claimants.append(encoder)
        if len(claimants) > 1:
            names = ", ".join(encoder.name for encoder in claimants)
            raise PluginError(f"model_type {model_type!r} is claimed by {len(claimants)} vision encoders: {names}")
        return claimants[0] if claimants else None

    def encoder_for(self, model_type: str) -> VisionEncoder:
        """As `find_encoder`. Raises PluginError that names what is claimed, and what failed to load, when none does."""
        if (found := self.find_encoder(model_type)) is not None:
            return found
        tried = [encoder for _, encoder in self._encoders()]
        claimed = sorted(kind for e in tried if not isinstance(e, PluginError) for kind in e.claims.model_types)
        known = f"claimed are {', '.join(claimed) or 'none'}{self._limit()}"
        broken = [str(error) for error in tried if isinstance(error, PluginError)]
        raise PluginError("; ".join((f"no vision encoder plugin claims model_type {model_type!r}", known, *broken)))

    def encoders(self) -> list[VisionEncoder]:
        """All that load."""
        return [encoder for _, encoder in self._encoders() if not isinstance(encoder, PluginError)]

    def broken_encoders(self) -> list[str]:
        """Why each of the others does not."""
        return [str(error) for _, error in self._encoders() if isinstance(error, PluginError)]

    def _encoders(self, first: str = "") -> Iterator[tuple[str, VisionEncoder | PluginError]]:
        for name in sorted(self._points["vision encoder"], key=lambda name: (name != first, name)):
            try:
                yield name, self.encoder(name)
            except PluginError as error:
                yield name, error

    def fusion(self, name: str) -> FusionStrategy:
        return cast("FusionStrategy", self._load("fusion", name))

    def status(self) -> list[PluginStatus]:
        """Every plugin, tried; one that fails is a row with its error and stops nothing."""
        rows = []
        for kind, claims in self._points.items():
            for name, points in sorted(claims.items()):
                for point in points:
                    error = None
                    try:
                        self._load(kind, name)
                    except PluginError as failure:
                        error = str(failure)
                    dist = point.dist
                    rows.append(
                        PluginStatus(kind, name, dist.name if dist else "?", dist.version if dist else "?", error)
                    )
        return rows

    def faults(self) -> list[str]:
        """A sentence for each plugin that is known not to load: it was tried (as encoders are, when a family asks which
        of them reads a model_type), its name is claimed twice, or its module is not there. Nothing is imported for
        this: what else may be wrong with a plugin that nothing has asked for is told by `status`."""
        return [fault for kind in self._points for fault in self._faults(kind)]

    def _faults(self, kind: Kind) -> Iterator[str]:
        for name, points in sorted(self._points[kind].items()):
            if (kind, name) in self._failed:
                yield self._failed[kind, name]
            elif len(points) > 1:
                yield _clash(kind, name, points)
            elif (why := _not_there(points[0])) is not None:
                yield f"{kind} {name!r} of {_owner(points[0])} failed to load: {why}"

    def _limit(self) -> str:
        return "" if self.allowed is None else f" (--plugins allows {', '.join(sorted(self.allowed))})"

    def _load(self, kind: Kind, name: str) -> object:
        try:
            return self._loaded(kind, name)
        except PluginError as error:
            self._failed[kind, name] = str(error)
            raise

    def _loaded(self, kind: Kind, name: str) -> object:
        points = self._points[kind].get(name)
        if not points:
            usable = ", ".join(sorted(self._points[kind])) or "none"
            raise PluginError(f"no {kind} plugin is named {name!r}; usable: {usable}{self._limit()}")
        if len(points) > 1:
            raise PluginError(_clash(kind, name, points))
        try:
            plugin = points[0].load()()
        except (Exception, SystemExit) as error:  # whatever a stranger's module raises must not stop the server
            raise PluginError(f"{kind} {name!r} failed to load: {type(error).__name__}: {error}") from error
        if (version := getattr(plugin, "api_version", None)) != API_VERSION:
            raise PluginError(
                f"{kind} {name!r} is written for api version {version}; this is {API_VERSION} (docs/plugins.md "
                "ends with what has changed)"
            )
        if missing := [member for member in MEMBERS[kind] if not hasattr(plugin, member)]:
            raise PluginError(f"{kind} {name!r} has no {', '.join(missing)}")
        if kind == "vision encoder":
            _check_encoder(name, cast("VisionEncoder", plugin))
        return plugin


def _entry_points(group: str) -> metadata.EntryPoints:
    return _read_entry_points(group, tuple(sys.path))


@lru_cache(32)
def _read_entry_points(group: str, path: tuple[str, ...]) -> metadata.EntryPoints:
    """Once for what is on the path: the files of 150 distributions take 7 ms [measured]."""
    return metadata.entry_points(group=group)


@lru_cache(8)
def installed(allowed: frozenset[str] | None = None) -> Registry:
    """What is installed, read once in a process: for a family's methods, which have no registry. allowed: as of
    Registry (`ModelFiles.plugins`)."""
    return Registry(allowed)


@lru_cache(32)
def installed_encoder(name: str) -> VisionEncoder:
    """Of a model that has been opened, and whose encoder is thus one that is allowed: `ModelSpec.encoder`."""
    return installed().encoder(name)


def _check_encoder(name: str, encoder: VisionEncoder) -> None:
    """By its name a spec finds it again, and its claims are read before it is used."""
    if encoder.name != name:
        raise PluginError(f"vision encoder {name!r} calls itself {encoder.name!r}")
    if not isinstance(encoder.claims, EncoderSpec):
        raise PluginError(f"vision encoder {name!r}: claims is a {type(encoder.claims).__name__}, not an EncoderSpec")


def _owner(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def _clash(kind: Kind, name: str, points: Sequence[metadata.EntryPoint]) -> str:
    owners = ", ".join(sorted(map(_owner, points)))
    return f"{kind} {name!r} is claimed by {len(points)} distributions: {owners}; uninstall one"


def _not_there(point: metadata.EntryPoint) -> str | None:
    """Why an entry point cannot be loaded, as far as files tell; nothing is imported, packages on the way neither."""
    found = point.pattern.fullmatch(point.value)
    if found is None or not found["attr"]:
        return f"its entry point {point.value!r} is not of the form module:class"
    if found["module"] in sys.modules:
        return None
    package, *inner = found["module"].split(".")
    spec = find_spec(package)
    for part in inner:
        if spec is None:
            break
        package = f"{package}.{part}"
        spec = PathFinder.find_spec(package, spec.submodule_search_locations or ())
    return None if spec is not None else f"there is no module {package!r}"


def _claims(name: str, config: Mapping[str, object]) -> bool:
    model_type, _, second = name.partition(".")
    if model_type != config.get("model_type"):
        return False
    vision = config.get("vision_config")
    vision_type = vision.get("model_type") if isinstance(vision, Mapping) else None
    return not second or second == vision_type or second in config
