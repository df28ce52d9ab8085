"""The adapters of a running server: what names mean, and what changes them. One change at a time; a request that has
been admitted keeps the version that its name meant then."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TypeVar

from opsin_plugins.loading.open_model import OpenModel
from opsin_server.adapter_config import AdapterConfig
from opsin_server.adapter_metrics import AdapterMetrics
from opsin_server.adapters.base_model import AdapterLimits, BaseModel
from opsin_server.adapters.catalogue import AdapterCatalogue, ServedAdapter
from opsin_server.adapters.exporter import archived
from opsin_server.adapters.importer import AdapterImporter, ImportOptions
from opsin_server.api.chores import Chores
from opsin_server.api.engine_status import Engine
from opsin_server.errors import BadRequest, ConfigError, NotFound, OpsinError, Unavailable
from opsin_server.ipc.messages import AdapterRef, AdapterReport, Ready
from opsin_server.storage.records import TENANT, Adapter, AdapterVersion, Alias, checked_name
from opsin_server.storage.state import State

log = logging.getLogger("opsin.adapters")

LARGEST = {"float16": 65504.0}  # numbers of the engine's type, where it is not as large as float32's
BELOW = ("promote", "rollback", "pin", "download")  # routes below an adapter's name
NOTE_SECONDS = 30.0  # between notes of when adapters were last used
SAID = 3  # adapters that cannot be served, in the log
FOLLOW_SECONDS = 1.0  # between looks at a database that other servers change as well
COLLECT_SECONDS = 24 * 3600.0  # between collections of files that nothing names

Result = TypeVar("Result")


class AdapterService:
    """Made before the engine is ready; `open` when it is. model: None of one that takes no adapters. digest: of the
    served model, once it is known."""

    def __init__(
        self,
        config: AdapterConfig,
        state: State,
        model: OpenModel | None,
        engine: Engine,
        base_names: Sequence[str],
        metrics: AdapterMetrics,
        digest: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._config, self._state, self._model, self._engine = config, state, model, engine
        self._metrics, self._digest = metrics, digest
        self.catalogue = AdapterCatalogue(state, TENANT, base_names)
        self._importer = AdapterImporter(state, TENANT, config.max_adapter_bytes)
        self._base: BaseModel | None = None
        self._changing = asyncio.Lock()
        self._used: dict[str, float] = {}
        self._revision: tuple[object, ...] = ()
        self._chores = Chores()
        self.scratch = state.directory.tmp
        self.max_bytes = config.max_adapter_bytes

    async def open(self, ready: Ready) -> None:
        """Reads what is stored, loads what the command line names, and keeps what is pinned. Raises ConfigError for an
        adapter of the command line that cannot be served."""
        room = ready.memory.adapters
        limits = AdapterLimits(room.rank, LARGEST.get(ready.dtype, AdapterLimits.largest), room.projectors)
        shape = ""
        if self._model is not None:
            self._base = base = BaseModel(self._model, limits)
            shape = await asyncio.to_thread(lambda: base.shape_digest)  # (it reads a little of every weight)
        self.catalogue.serve(room, shape)
        self._metrics.watch(lambda: room.slots, self._counts)
        self._engine.on_adapters = self._reported
        await asyncio.to_thread(self.catalogue.refresh)
        for name, path in self._config.named().items():
            try:
                await self.load(name, _home(path), ImportOptions(origin="command line"))
            except OpsinError as error:
                raise ConfigError(f"--adapter {name}={path}: {error.message}") from error
        self._warn_of_unfit()
        for name in self.catalogue.hidden():
            log.warning("%s is what the model itself is called now: the adapter or alias of that name is hidden", name)
        self._engine.keep_adapters(await asyncio.to_thread(self._pinned))
        self._chores.begin(NOTE_SECONDS, self._write_use)
        self._chores.begin(COLLECT_SECONDS, self._collect)
        if self._state.database.shared:
            self._chores.begin(FOLLOW_SECONDS, self._follow)

    def why_not_ready(self) -> str | None:
        """A sentence, or None when all that was stored or named is there."""
        return None if self._chores.begun else "Adapters are being loaded"

    async def close(self) -> None:
        await self._chores.end()
        if self._chores.begun:
            await self._write_use()

    # --------------------------------------------------------------------------------------- what requests ask

    async def resolve(self, name: str) -> ServedAdapter | None:
        """What a request's model means now; None: the base model. Raises NotFound, BadRequest."""
        try:
            version = self.catalogue.find(name)
        except NotFound:
            if (reason := self.why_not_ready()) is not None:
                raise Unavailable(reason) from None
            if self.catalogue.knows(name):
                raise
            version = await self._from_adapter_dir(name)
        if version is None:
            return None
        self.catalogue.check_fits(version)
        digest = version.facts.digest
        path = self.catalogue.known_path(digest)
        if path is None:
            path = await asyncio.to_thread(self.catalogue.fetch, digest)
        self._used[version.adapter] = time.time()
        return self.catalogue.served(version, path)

    async def _from_adapter_dir(self, name: str) -> AdapterVersion:
        """One that lies in --adapter-dir and was not asked for before."""
        directory = (
            self._inside(name) if is_name(name) and not any(p.startswith(".") for p in name.split("/")) else None
        )
        if directory is None or not await asyncio.to_thread(_holds_an_adapter, directory):
            raise self.catalogue.unknown(name)
        async with self._changing:
            try:
                found = self.catalogue.find(name)  # another request may have been first
            except NotFound:
                found = await self._load(name, directory, ImportOptions(within=self._root()))
        assert found is not None
        return found

    def _inside(self, name: str) -> Path | None:
        """A path below --adapter-dir, links followed; None: it would lead out, or there is no such directory."""
        root = self._root()
        if root is None or not name or "\0" in name:
            return None
        found = (root / name).resolve()
        return found if found != root and found.is_relative_to(root) else None

    def _root(self) -> Path | None:
        return None if self._config.adapter_dir is None else _home(self._config.adapter_dir).resolve()

    async def load_confined(self, name: str, path: str, options: ImportOptions, param: str = "path") -> AdapterVersion:
        """From a path that came over the API, in the field `param`. Raises BadRequest unless it lies in
        --adapter-dir."""
        return await self.load(name, self._confined(path, param), replace(options, within=self._root()))

    def _confined(self, path: str, param: str) -> Path:
        if self._config.adapter_dir is None:
            raise BadRequest(
                "adapters are loaded from paths only where the server was started with --adapter-dir; they can be "
                "uploaded to /v1/adapters",
                param=param,
            )
        if (found := self._inside(path)) is None:
            raise BadRequest("the path does not lie in the server's --adapter-dir", param=param)
        return found

    def archived(self, version: AdapterVersion) -> IO[bytes]:
        """A tar of the files that the version was made of, each checked while it is copied; for the caller to close.
        For a thread."""
        return archived(self._state, TENANT, version)

    # ------------------------------------------------------------------------------------------ what changes them

    async def load(self, name: str, directory: Path, options: ImportOptions) -> AdapterVersion:
        async with self._changing:
            return await self._load(name, directory, options)

    async def _load(self, name: str, directory: Path, options: ImportOptions) -> AdapterVersion:
        base, options = self._before(name, options)
        return await self._changed(lambda: self._importer.from_directory(directory, name, base, options))

    async def upload(self, name: str, archive: Path, options: ImportOptions) -> AdapterVersion:
        async with self._changing:
            base, options = self._before(name, options)
            options = replace(options, origin="upload")
            return await self._changed(lambda: self._importer.from_archive(archive, name, base, options))

    def _before(self, name: str, options: ImportOptions) -> tuple[BaseModel, ImportOptions]:
        check_name(name)
        self.catalogue.check_free(name, alias=False)
        if self._model is None:
            raise BadRequest("this model makes embeddings alone: it takes no adapters")
        if not self.catalogue.room.slots:
            raise BadRequest("this server has no slots for adapters (--max-loras)")
        return self._loaded_base(), replace(options, base_digest=self._digest())

    async def promote(self, name: str, version: int) -> Adapter:
        async with self._changing:
            candidates = self.catalogue.snapshot.versions.get(name, ())
            for found in (v for v in candidates if v.version == version):
                self.catalogue.check_fits(found, "version")
            return await self._changed(lambda: self._state.adapters.promote(TENANT, name, version))

    async def roll_back(self, name: str) -> Adapter:
        async with self._changing:
            return await self._changed(lambda: self._state.adapters.rollback(TENANT, name))

    async def pin(self, name: str, pinned: bool) -> Adapter:
        """Raises BadRequest where no slot would be left to all others."""
        async with self._changing:
            now = self.catalogue.snapshot.adapters
            others = sum(adapter.pinned for adapter in now.values() if adapter.name != name)
            most = max(0, self.catalogue.room.slots - 1)
            if pinned and others + 1 > most:
                raise BadRequest(f"at most {most} adapters can be pinned: one slot is left to all others (--max-loras)")
            return await self._changed(lambda: self._state.adapters.pin(TENANT, name, pinned))

    async def unload(self, name: str) -> None:
        """With all its versions. Requests that have been admitted go on."""
        async with self._changing:
            await self._changed(lambda: self._state.adapters.delete_adapter(TENANT, name))

    async def delete_version(self, name: str, version: int) -> None:
        async with self._changing:
            await self._changed(lambda: self._state.adapters.delete_version(TENANT, name, version))

    async def set_alias(self, alias: str, target: str) -> Alias:
        """target: the base model's name, an adapter's, or name@v3 for a version that stays. Raises NotFound."""
        async with self._changing:
            if not is_path(alias):
                raise BadRequest(
                    f"'{alias}' cannot be an alias: no part of it may be empty, '.' or '..'", param="alias"
                )
            self.catalogue.check_free(alias, alias=True)
            try:
                adapter, version = self.catalogue.target_of(target)
            except NotFound as error:
                error.param = "target"
                raise
            return await self._changed(lambda: self._state.aliases.set(TENANT, alias, adapter, version))

    async def delete_alias(self, alias: str) -> None:
        async with self._changing:
            await self._changed(lambda: self._state.aliases.delete(TENANT, alias))

    async def _changed(self, change: Callable[[], Result]) -> Result:
        """Runs a change in a thread, to its end even when the client leaves, and then tells everybody."""

        async def run() -> Result:
            result = await asyncio.to_thread(change)
            await asyncio.to_thread(self.catalogue.refresh)
            self._engine.keep_adapters(await asyncio.to_thread(self._pinned))
            return result

        return await _to_its_end(run())

    # ------------------------------------------------------------------------------------------ with the engine

    def _loaded_base(self) -> BaseModel:
        if self._base is None:
            raise BadRequest("the model is still being loaded")
        return self._base

    def _pinned(self) -> list[AdapterRef]:
        refs = []
        for adapter in self.catalogue.snapshot.adapters.values():
            if not adapter.pinned:
                continue
            try:
                version = self.catalogue.find(adapter.name)
                assert version is not None
                self.catalogue.check_fits(version)
                path = self.catalogue.known_path(version.facts.digest) or self.catalogue.fetch(version.facts.digest)
            except OpsinError as error:
                log.warning("the pinned adapter %s is not kept: %s", adapter.name, error.message)
                continue
            refs.append(AdapterRef(bytes.fromhex(version.facts.digest), str(path)))
        return refs

    def _warn_of_unfit(self) -> None:
        why = self.catalogue.unfit()
        for sentence in why[:SAID]:
            log.warning("%s", sentence)
        if len(why) > SAID:
            log.warning("%d adapters more cannot be served: GET /v1/adapters says why", len(why) - SAID)

    def _reported(self, report: AdapterReport) -> None:
        names = {v.facts.digest: v.adapter for found in self.catalogue.snapshot.versions.values() for v in found}
        for load in report.loads:
            name = names.get(load.digest.hex(), "(deleted)")
            self._metrics.loaded(name, load.seconds, bool(load.error))

    def _counts(self) -> tuple[int, int]:
        report = self._engine.adapters
        return len(report.slots), len(report.host)

    # ----------------------------------------------------------------------------------------------------- chores

    async def _write_use(self) -> None:
        """When adapters were last used. What cannot be noted now is noted the next time."""
        used, self._used = self._used, {}
        for name, at in used.items():
            try:
                await asyncio.to_thread(self._state.adapters.touch, TENANT, [name], at)
            except OpsinError:
                self._used.setdefault(name, at)
        if used:
            await asyncio.to_thread(self.catalogue.refresh)

    async def _collect(self) -> None:
        await asyncio.to_thread(self._state.blobs.collect)

    async def _follow(self) -> None:
        """What other servers on the same database have changed."""
        revision = await asyncio.to_thread(self._state.adapters.revision, TENANT)
        if revision == self._revision:
            return
        async with self._changing:
            await asyncio.to_thread(self.catalogue.refresh)
            self._engine.keep_adapters(await asyncio.to_thread(self._pinned))
        self._revision = revision


def check_name(name: str) -> None:
    """Raises BadRequest for a name that could not be asked for: routes are below it, versions behind an '@'."""
    checked_name(name, "the adapter's name", "name")
    if "@" in name:
        raise BadRequest("an adapter's name must not hold '@', behind which its versions are named", param="name")
    if not is_name(name):
        raise BadRequest(
            f"'{name}' cannot be an adapter's name: no part of it may be empty, '.' or '..', begin or end with "
            f"a blank, and the last be none of {', '.join(BELOW)}",
            param="name",
        )


def is_name(name: str) -> bool:
    return "@" not in name and is_path(name) and name.rpartition("/")[2] not in BELOW


def is_path(name: str) -> bool:
    """Whether it is the same in an address, below which it is asked for, and in a header."""
    return name == name.strip() and all(part not in ("", ".", "..") for part in name.split("/"))


async def _to_its_end(work: Awaitable[Result]) -> Result:
    """A client that leaves must not stop half of a change; what becomes of it is then nobody's answer."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _home(path: str) -> Path:
    return Path(path).expanduser()


def _holds_an_adapter(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("adapter_config.json", "lora.safetensors"))
