"""`opsin serve`, put together: the engine process starts first and loads while this process gets ready."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from rich.console import Console

from opsin_plugins.loading.content_digest import ContentDigest
from opsin_plugins.loading.open_model import OpenModel
from opsin_plugins.loading.open_served import OpenDualEncoder, open_served
from opsin_plugins.loading.registry import installed
from opsin_plugins.spec import SpecError
from opsin_server.api.listen_addresses import Address, addresses, bind, check_guarded, url_of
from opsin_server.api.model_digest import ModelDigest
from opsin_server.config import ServerConfig
from opsin_server.console import Facts, Loading, announce, embedding_rows, model_rows
from opsin_server.errors import ConfigError
from opsin_server.ipc.client import EngineClient
from opsin_server.ipc.messages import Ready
from opsin_server.signals import heeded
from opsin_server.storage.data_directory import open_directory

if TYPE_CHECKING:
    from opsin_server.api.services import Services
    from opsin_server.storage.state import State

log = logging.getLogger("opsin.launch")


# How long a thread that decodes pictures or reads a training file may keep the interpreter from the event loop, which
# needs it several times for each token. (Beside the 5 ms of Python itself no difference was measured for certain.)
SWITCH_SECONDS = 0.0005


def run(config: ServerConfig) -> None:
    """Returns when the server has stopped and no child is left. Raises ConfigError for what stops it from starting."""
    sys.setswitchinterval(SWITCH_SECONDS)
    config.check()
    where = addresses(config.host)
    check_guarded(config, where)
    level = os.environ.get("OPSIN_LOG_LEVEL", "INFO").strip().upper()
    if level not in logging.getLevelNamesMapping():
        raise ConfigError(f"OPSIN_LOG_LEVEL={level!r} is not one of {', '.join(logging.getLevelNamesMapping())}")
    logging.basicConfig(level=level, format="%(levelname)s %(name)s %(message)s")
    for chatty in ("uvicorn", "httpcore2", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        with suppress(asyncio.CancelledError):  # told to stop before it served
            uvloop.run(_run(config, where))
    finally:
        for number in heeded():  # impatience must not spoil an end that is clean
            signal.signal(number, signal.SIG_IGN)


async def _run(config: ServerConfig, where: Sequence[Address]) -> None:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in heeded():
        loop.add_signal_handler(number, task.cancel)  # until `serve` has its own
    try:
        given = config.engine
        opened = open_served(Path(given.model), given.plugins, given.family_options(), given.tower_file())
        digest = ModelDigest(ContentDigest(opened.files))  # before the engine reads them: of what it will have read
    except SpecError as error:
        raise ConfigError(str(error)) from error
    families = installed(opened.registry.allowed)  # what families ask
    for fault in dict.fromkeys([*opened.registry.faults(), *families.faults()]):
        log.warning("%s", fault)
    for note in opened.files.notes:
        log.info("%s: %s", opened.files.directory, note)
    with ExitStack() as until_the_end:
        listeners = [until_the_end.enter_context(listener) for listener in bind(where, config.port)]
        # Before the engine starts: whoever may not have the directory is refused at once.
        directory = until_the_end.enter_context(open_directory(config.storage))
        loading = Loading(Console(stderr=True))
        engine = EngineClient(config.engine, loading)
        try:
            await engine.start()
            from opsin_server.storage.state import State  # 0.4 s, while the engine process is loading already

            state = until_the_end.enter_context(State.within(directory, config.storage))
            await _serve(config, engine, loading, listeners, opened, digest, state)
        finally:
            loading.done()
            await engine.stop()


async def _serve(
    config: ServerConfig,
    engine: EngineClient,
    loading: Loading,
    listeners: Sequence[socket.socket],
    model: OpenModel | OpenDualEncoder,
    digest: ModelDigest,
    state: State,
) -> None:
    # Imported only now: 0.7 s in which the engine process is loading already.
    from opsin_server.api.app import create_app
    from opsin_server.api.assemble import assemble
    from opsin_server.api.listener import Server

    try:
        services = assemble(config, engine, model, digest, state)
    except ValueError as error:  # a tokenizer, template or limit that cannot be; its sentence is for the operator
        raise ConfigError(str(error)) from error
    app = create_app(services)
    gc.collect()
    gc.freeze()  # what was imported stays: going through it would stop all requests for 20 to 40 ms [measured]
    gc.enable()  # (the command line disabled it)
    url = url_of(listeners[0])  # now: the server closes them, and may be told to stop before the engine is ready
    server = Server(app, config, listeners)
    services.open()
    serving = asyncio.create_task(server.serve_until_stopped())
    ready = asyncio.create_task(_ready(engine, services))
    try:
        await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
        loading.done()
        if ready.done() and not serving.done():  # (a signal may come in the moment in which the engine is ready)
            _announce(loading, config, ready.result(), _facts(model, services), url, services.names[0])
            digest.start()
        await serving
    finally:  # also when the engine did not start, or a signal came before `serve` had its own
        server.should_exit = True
        digest.stop()
        ready.cancel()
        await asyncio.wait({serving, ready})
        if not ready.cancelled():
            ready.exception()
        await services.close()


async def _ready(engine: EngineClient, services: Services) -> Ready:
    """When the engine has loaded, all adapters that are stored or named are known, and jobs and batches go on."""
    from opsin_server.api.routes.in_process import BackgroundAnswers
    from opsin_server.api.vocabulary import vocabulary_of

    encoder = services.chat_encoder
    if encoder is not None and (vocabulary := await asyncio.to_thread(vocabulary_of, encoder)) is not None:
        engine.teach(*vocabulary)
    ready = await engine.wait_ready()
    await services.adapters.open(ready)
    await services.fine_tuning.open(ready)
    await services.batches.open(ready, BackgroundAnswers(services))
    return ready


def _facts(model: OpenModel | OpenDualEncoder, services: Services) -> Facts:
    """What the banner says of the model."""
    encoder = services.chat_encoder
    if encoder is None or isinstance(model, OpenDualEncoder):
        return Facts(embedding_rows(model.files, services.embedder.facts), sees=True, answers=False)
    ends = [encoder.tokenizer.token_text(i) for i in encoder.ends]
    rows = model_rows(model.files, model.spec, ends, services.sampling.described())
    return Facts(rows, sees=model.spec.vision is not None, answers=True)


def _announce(loading: Loading, config: ServerConfig, ready: Ready, facts: Facts, url: str, name: str) -> None:
    try:
        announce(loading.console, config, ready, facts, url, name, time.monotonic() - loading.started)
    except Exception:  # a banner is worth no server
        log.exception("serving on %s, but the banner could not be printed", url)
