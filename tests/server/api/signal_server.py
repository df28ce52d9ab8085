"""A server in a process of its own, which prints its URL: for tests that send signals."""

import uvloop
from fake_encoder import FakeEmbedder, FakeEncoder
from fake_engine import FakeEngine, Script
from running_server import NAMES, config

from opsin_server.api.app import create_app
from opsin_server.api.listen_addresses import addresses, bind
from opsin_server.api.listener import Server
from opsin_server.api.sampling_defaults import SamplingDefaults
from opsin_server.metrics import Metrics
from support.base_only import BaseOnly, Refusing


async def main() -> None:
    engine = FakeEngine(Script(b"x" * 40, delay=0.01))
    app = create_app(
        config(),
        engine,
        FakeEncoder(),  # type: ignore[arg-type]
        NAMES,
        "v1-test",
        SamplingDefaults(),
        BaseOnly(NAMES),  # type: ignore[arg-type]
        Refusing(),  # type: ignore[arg-type]
        Refusing(),  # type: ignore[arg-type]
        Refusing(),  # type: ignore[arg-type]
        Refusing(),  # type: ignore[arg-type]
        Metrics(),
        embedder=FakeEmbedder(),
    )
    listeners = bind(addresses(config().host), config().port)
    await Server(app, config(), listeners, lambda url: print(url, flush=True)).serve_until_stopped()


if __name__ == "__main__":
    uvloop.run(main())
