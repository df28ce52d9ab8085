"""What the names that clients send mean: the base model, an adapter's current version or another of its versions, or an
alias of any of these. A snapshot in memory, replaced as a whole after each change."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from opsin_server.adapters.importer import TRAINED_PROJECTOR
from opsin_server.errors import BadRequest, NotFound
from opsin_server.ipc.memory_messages import AdapterRoom
from opsin_server.ipc.messages import AdapterRef
from opsin_server.storage.records import Adapter, AdapterVersion, Alias
from opsin_server.storage.state import State

SHOWN = 8  # models, to someone who asked for another
SUFFIX = re.compile(r"(?P<name>.+)@(?:v(?P<version>[1-9][0-9]{0,8})|(?:sha256:)?(?P<digest>[0-9a-f]{8,64}))")


@dataclass(frozen=True)
class ServedAdapter:
    """One version of an adapter, as requests use it. max_pixels: of a picture where a request does not say."""

    name: str
    version: int
    ref: AdapterRef
    max_pixels: int | None = None

    @property
    def label(self) -> str:
        return f"{self.name}@v{self.version}"

    @property
    def digest(self) -> str:
        return self.ref.digest.hex()


@dataclass(frozen=True)
class Snapshot:
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    versions: Mapping[str, Sequence[AdapterVersion]] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)


class AdapterCatalogue:
    """base_names: what clients call the model itself. Read in the event loop; `refresh` in a thread."""

    def __init__(self, state: State, tenant: str, base_names: Sequence[str]) -> None:
        self._state, self._tenant, self._base_names = state, tenant, tuple(base_names)
        self.snapshot = Snapshot()
        self.room = AdapterRoom()
        self._base_shape, self._serving = "", False
        self._paths: dict[str, Path] = {}

    def serve(self, room: AdapterRoom, base_shape: str) -> None:
        """What the engine has room for, and the shape of its model: versions must fit both."""
        self.room, self._base_shape, self._serving = room, base_shape, True

    def refresh(self) -> None:
        """Reads all names anew."""
        state, tenant = self._state, self._tenant
        versions: dict[str, list[AdapterVersion]] = {}
        for version in state.adapters.all_versions(tenant):
            versions.setdefault(version.adapter, []).append(version)
        adapters = {adapter.name: adapter for adapter in state.adapters.all(tenant)}
        aliases = {alias.alias: alias for alias in state.aliases.all(tenant)}
        digests = {version.facts.digest for found in versions.values() for version in found}
        self._paths = {digest: path for digest, path in self._paths.items() if digest in digests}
        self.snapshot = Snapshot(adapters, versions, aliases)

    def find(self, name: str) -> AdapterVersion | None:
        """What a model's name means; None: the base model. Raises NotFound."""
        if name in self._base_names:
            return None
        now = self.snapshot
        if (alias := now.aliases.get(name)) is not None:
            return None if alias.adapter is None else self._of(now, alias.adapter, alias.version)
        if name in now.adapters:
            return self._of(now, name, None)
        if (found := SUFFIX.fullmatch(name)) is not None and found["name"] in now.adapters:
            if found["version"]:
                return self._of(now, found["name"], int(found["version"]))
            return self._by_digest(now, found["name"], found["digest"])
        raise self.unknown(name)

    def knows(self, name: str) -> bool:
        """Whether a name is an adapter's, or of a version of one, whether or not that answers."""
        found = SUFFIX.fullmatch(name)
        return name in self.snapshot.adapters or (found is not None and found["name"] in self.snapshot.adapters)

    def target_of(self, name: str) -> tuple[str | None, int | None]:
        """What an alias of this name is to be: an adapter (None: the base model), and a version where the name stays
        with one. Raises NotFound."""
        if (other := self.snapshot.aliases.get(name)) is not None:
            return other.adapter, other.version
        version = self.find(name)
        if version is None:
            return None, None
        return version.adapter, None if name == version.adapter else version.version

    def unknown(self, name: str) -> NotFound:
        known = [*self._base_names, *self.snapshot.adapters, *self.snapshot.aliases]
        listed = ", ".join(known[:SHOWN]) + (
            f" and {len(known) - SHOWN} more (/v1/models)" if len(known) > SHOWN else ""
        )
        message = f"The model '{name[:200]}' is not served here; this server has {listed}"
        return NotFound(message, param="model", code="model_not_found")

    def _of(self, now: Snapshot, name: str, number: int | None) -> AdapterVersion:
        wanted = now.adapters[name].current_version if number is None else number
        found = self._version(now, name, wanted)
        if found is None:
            which = "no version of it is the current one" if number is None else f"it has no version {number}"
            message = f"The adapter '{name}' cannot answer: {which}"
            raise NotFound(message, param="model", code="model_not_found")
        return found

    def _by_digest(self, now: Snapshot, name: str, digest: str) -> AdapterVersion:
        found = [v for v in now.versions.get(name, ()) if v.facts.digest.startswith(digest)]
        if len({v.facts.digest for v in found}) != 1:
            message = f"The adapter '{name}' has {len(found) or 'no'} versions whose digest begins with {digest}"
            raise NotFound(message, param="model", code="model_not_found")
        return found[-1]

    def check_fits(self, version: AdapterVersion, param: str = "model") -> None:
        """Raises BadRequest for a version that this server, as it was started, cannot serve."""
        if (why := self.why_unfit(version)) is not None:
            raise BadRequest(why, param=param, code="unsupported_model")

    def why_unfit(self, version: AdapterVersion) -> str | None:
        """A sentence; None: it is served."""
        facts, what = version.facts, f"The adapter '{version.adapter}' (version {version.version})"
        if not self.room.slots:
            return f"{what} cannot be served: this server has no slots for adapters (--max-loras)"
        if facts.base_shape != self._base_shape:
            return f"{what} was loaded for another model than the one that is served: load it again"
        if facts.rank > self.room.rank:
            return f"{what} has rank {facts.rank}; the server takes up to {self.room.rank} (--max-lora-rank)"
        if TRAINED_PROJECTOR in facts.targets and not self.room.projectors:
            return f"{what} has a projector of its own, for which slots have no room (--lora-projectors)"
        return None

    def unfit(self) -> list[str]:
        """Why those of adapters' current versions are not served that are not."""
        now = self.snapshot
        versions = (self._version(now, name, adapter.current_version) for name, adapter in now.adapters.items())
        return [why for version in versions if version is not None and (why := self.why_unfit(version)) is not None]

    def known_path(self, digest: str) -> Path | None:
        """Where the engine's file lies, if that was asked before."""
        return self._paths.get(digest)

    def fetch(self, digest: str) -> Path:
        """Where it lies, fetched first from a place that is not of this machine. Raises what blobs raise."""
        path = self._state.blobs.local_path(self._tenant, digest)
        if self._state.blobs.is_local:
            self._paths[digest] = path
        return path

    def served(self, version: AdapterVersion, path: Path) -> ServedAdapter:
        facts = version.facts
        budget = (facts.pixel_budget or {}).get("max_pixels")
        return ServedAdapter(
            version.adapter, version.version, AdapterRef(bytes.fromhex(facts.digest), str(path)), budget
        )

    def check_free(self, name: str, *, alias: bool) -> None:
        """Raises BadRequest for a name that means something else. alias: it is to be an alias, else an adapter."""
        now, param = self.snapshot, "alias" if alias else "name"
        if name in self._base_names:
            raise BadRequest(f"'{name}' is what the model itself is called here", param=param)
        found = SUFFIX.fullmatch(name)
        if alias and (name in now.adapters or (found is not None and found["name"] in now.adapters)):
            raise BadRequest(f"'{name}' is the name of an adapter, or of a version of one", param=param)
        others = (other for other in now.aliases if (m := SUFFIX.fullmatch(other)) is not None and m["name"] == name)
        if not alias and (shadow := name if name in now.aliases else next(others, None)) is not None:
            raise BadRequest(f"'{shadow}' is an alias: delete it first", param=param)

    def hidden(self) -> list[str]:
        """Names of the model that are also an adapter's or an alias."""
        return [name for name in self._base_names if name in self.snapshot.adapters or name in self.snapshot.aliases]

    def names(self) -> list[str]:
        """All that answers, but for versions that must be asked for."""
        now = self.snapshot
        current = {name for name, adapter in now.adapters.items() if self._answers(now, name, adapter.current_version)}
        aliases = (
            a.alias
            for a in now.aliases.values()
            if a.adapter is None or (self._answers(now, a.adapter, a.version) if a.version else a.adapter in current)
        )
        return [*self._base_names, *sorted(current), *sorted(aliases)]

    def _answers(self, now: Snapshot, name: str, number: int | None) -> bool:
        """Whether a version does; while the model loads, all do."""
        found = self._version(now, name, number)
        return found is not None and (not self._serving or self.why_unfit(found) is None)

    def _version(self, now: Snapshot, name: str, number: int | None) -> AdapterVersion | None:
        return next((v for v in now.versions.get(name, ()) if v.version == number), None)
