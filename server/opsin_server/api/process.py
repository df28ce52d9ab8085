"""`opsin serve`, put together: the engine process starts first and loads while this process gets ready."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import uvloop
from rich.console import Console

from opsin_plugins.loading.open_model import open_model
from opsin_plugins.spec import Architecture, ModelFiles, ModelSpec, SpecError
from opsin_server.config import ServerConfig, model_name
from opsin_server.console import Loading, announce, model_rows
from opsin_server.errors import ConfigError
from opsin_server.fingerprint import fingerprint
from opsin_server.ipc.client import EngineClient

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(config: ServerConfig) -> None:
    """Returns when the server has stopped and no child is left. Raises ConfigError for what stops it from starting."""
    config.check()
    level = os.environ.get("OPSIN_LOG_LEVEL", "INFO").strip().upper()
    if level not in logging.getLevelNamesMapping():
        raise ConfigError(f"OPSIN_LOG_LEVEL={level!r} is not one of {', '.join(logging.getLevelNamesMapping())}")
    logging.basicConfig(level=level, format="%(levelname)s %(name)s %(message)s")
    for chatty in ("uvicorn", "httpcore2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        with suppress(asyncio.CancelledError):  # told to stop before it served
            uvloop.run(_run(config))
    finally:
        for number in SIGNALS:  # impatience must not spoil an end that is clean
            signal.signal(number, signal.SIG_IGN)


async def _run(config: ServerConfig) -> None:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in SIGNALS:
        loop.add_signal_handler(number, task.cancel)  # until `serve` has its own
    try:
        opened = open_model(Path(config.engine.model), config.engine.plugins, dict(config.engine.model_options))
    except SpecError as error:
        raise ConfigError(str(error)) from error
    loading = Loading(Console(stderr=True))
    engine = EngineClient(config.engine, loading)
    try:
        await engine.start()
        await _serve(config, engine, loading, opened.files, opened.architecture, opened.spec)
    finally:
        loading.done()
        await engine.stop()


async def _serve(
    config: ServerConfig,
    engine: EngineClient,
    loading: Loading,
    files: ModelFiles,
    architecture: Architecture,
    spec: ModelSpec,
) -> None:
    # Imported only now: 0.7 s in which the engine process is loading already.
    from opsin_server.api.app import create_app
    from opsin_server.api.listener import Server, bind, url_of
    from opsin_server.api.sampling_defaults import read_sampling_defaults
    from opsin_server.prompt.encode import PromptEncoder

    names = config.served_names or (model_name(files.directory),)
    try:
        encoder = PromptEncoder(files, architecture, spec)
        sampling = read_sampling_defaults(files.generation if config.generation_config == "auto" else {})
        app = create_app(config, engine, encoder, names, fingerprint(files), encoder.ends, sampling)
    except ValueError as error:  # a tokenizer, template or limit that cannot be; its sentence is for the operator
        raise ConfigError(str(error)) from error
    with bind(config.host, config.port) as listener:
        server, url = Server(app, config, listener), url_of(listener)
        serving = asyncio.create_task(server.serve_until_stopped())
        ready = asyncio.create_task(engine.wait_ready())
        try:
            await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
            loading.done()
            if ready.done() and not serving.done():  # (a signal may come in the moment in which the engine is ready)
                seconds = time.monotonic() - loading.started
                facts = model_rows(
                    files, spec, [encoder.tokenizer.token_text(i) for i in encoder.ends], sampling.described()
                )
                announce(loading.console, config, ready.result(), facts, url, names[0], seconds)
            await serving
        finally:  # also when the engine did not start, or a signal came before `serve` had its own
            server.should_exit = True
            ready.cancel()
            await asyncio.wait({serving, ready})
            if not ready.cancelled():
                ready.exception()
