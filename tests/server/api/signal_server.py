"""A server in a process of its own, which prints its URL: for tests that send signals."""

import uvloop
from fake_encoder import FakeEmbedder, FakeEncoder
from fake_engine import FakeEngine, Script
from running_server import NAMES, config

from opsin_server.api.app import create_app
from opsin_server.api.listen_addresses import addresses, bind
from opsin_server.api.listener import Server
from support.fake_services import fake_services


async def main() -> None:
    engine = FakeEngine(Script(b"x" * 40, delay=0.01))
    app = create_app(fake_services(config(), engine, FakeEncoder(), FakeEmbedder(), NAMES))
    listeners = bind(addresses(config().host), config().port)
    await Server(app, config(), listeners, lambda url: print(url, flush=True)).serve_until_stopped()


if __name__ == "__main__":
    uvloop.run(main())
