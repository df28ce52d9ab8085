"""`opsin serve`, put together: the engine process starts first and loads while this process gets ready."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

import uvloop
from rich.console import Console

from opsin_plugins.files import read_model_files
from opsin_plugins.registry import Registry
from opsin_plugins.spec import SpecError
from opsin_server.app import create_app
from opsin_server.banner import Loading, announce
from opsin_server.config import ServerConfig, model_name
from opsin_server.errors import ConfigError
from opsin_server.fingerprint import fingerprint
from opsin_server.ipc.client import EngineClient
from opsin_server.prompt.encode import PromptEncoder
from opsin_server.serving import bind, serve, url_of


def run(config: ServerConfig) -> None:
    """Returns when the server has stopped and no child is left. Raises ConfigError for what stops it from starting."""
    config.check()
    logging.basicConfig(level=os.environ.get("OPSIN_LOG_LEVEL", "INFO"), format="%(levelname)s %(name)s %(message)s")
    for chatty in ("uvicorn", "httpcore2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    uvloop.run(_run(config))


async def _run(config: ServerConfig) -> None:
    started, console = time.monotonic(), Console(stderr=True)
    listener = bind(config.host, config.port)
    try:
        files = read_model_files(Path(config.engine.model))
        architecture = Registry(config.engine.plugins).architecture(files)
        spec = architecture.spec(files)
        loading = Loading(console)
        engine = EngineClient(config.engine, loading)
        await engine.start()
        try:
            encoder = PromptEncoder(files, architecture, spec)
            names = config.served_names or (model_name(files.directory),)
            app = create_app(config, engine, encoder, names, fingerprint(files), spec.eos)
            server = asyncio.create_task(serve(app, config, listener=listener))
            ready = asyncio.create_task(engine.wait_ready())
            await asyncio.wait({server, ready}, return_when=asyncio.FIRST_COMPLETED)
            loading.done()
            if ready.done() and ready.exception() is None:
                announce(console, config, ready.result(), url_of(listener), names[0], time.monotonic() - started)
            elif ready.done():
                server.cancel()
                raise ready.exception() or ConfigError("the engine did not start")
            await server
            ready.cancel()
        finally:
            loading.done()
            await engine.stop()
    except SpecError as error:
        raise ConfigError(str(error)) from error
    finally:
        listener.close()
