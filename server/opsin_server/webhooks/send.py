"""One attempt to deliver an event: a POST under a deadline, to a public address or one that was allowed."""

from __future__ import annotations

import asyncio
import time

import httpcore2

from opsin_client.public_addresses import read_address
from opsin_server.errors import BadRequest
from opsin_server.media.allowed_addresses import dialable
from opsin_server.media.connect import CheckedBackend, Network
from opsin_server.media.url import Url, parse_http_url
from opsin_server.storage.records import WebhookDelivery
from opsin_server.webhook_config import WebhookConfig
from opsin_server.webhooks.sign import body_of, signed_headers

NOT_PUBLIC = "The webhook's host is unknown, or its address is not public (--webhook-allow opens private ones)"


def check_url(text: str, config: WebhookConfig) -> None:
    """Raises BadRequest for what no webhook can be sent to; of a name that is known only when one is."""
    host = webhook_url(text).host
    if "#" in text:
        raise BadRequest("The webhook's URL must not have a fragment (#...), which is never sent", param="url")
    is_address = host == "localhost" or read_address(host) is not None
    if is_address and dialable(host, "127.0.0.1" if host == "localhost" else host, config.webhook_allow) is None:
        raise BadRequest(NOT_PUBLIC, param="url")


def webhook_url(text: str) -> Url:
    """Raises BadRequest."""
    try:
        return parse_http_url(text, "webhook's URL")
    except BadRequest as error:
        raise BadRequest(error.message, param="url", code="invalid_value") from None


async def send(delivery: WebhookDelivery, config: WebhookConfig, network: Network) -> int:
    """The status that the endpoint answered with. Redirects are not followed: where they lead has been told no secret.
    Raises BadRequest, a sentence for the endpoint's owner, where none came."""
    url, body = webhook_url(delivery.endpoint.url), body_of(delivery)
    signed = signed_headers(delivery.id, int(time.time()), body, delivery.endpoint.secrets)
    headers = {
        "Host": url.authority,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "User-Agent": "opsin",
        **signed,
    }
    backend = CheckedBackend(network, config.webhook_allow, config.webhook_timeout, BadRequest(NOT_PUBLIC))
    address = httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
    pool = httpcore2.AsyncConnectionPool(ssl_context=network.tls(), max_connections=1, network_backend=backend)
    try:
        async with (
            asyncio.timeout(config.webhook_timeout),
            pool,
            pool.stream("POST", address, headers=list(headers.items()), content=body) as response,
        ):
            return response.status  # of the body nothing is read
    except TimeoutError:
        limit = f"{config.webhook_timeout:g} s (--webhook-timeout)"
        raise _failed(f"{url.host} did not answer within {limit}") from None
    except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException):
        raise _failed(f"{url.host} could not be reached") from None
    except BadRequest as error:  # of an address that may not be dialled
        raise _failed(error.message) from None


def _failed(message: str) -> BadRequest:
    return BadRequest(message, code="webhook_failed")
