"""Webhook endpoints as OpenAI's SDK makes them, and deliveries as it verifies them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator

import openai
import pytest
from fake_engine import FakeEngine, Script
from openai.types.webhooks.fine_tuning_job_cancelled_webhook_event import FineTuningJobCancelledWebhookEvent
from prometheus_client import CollectorRegistry
from running_server import RunningServer, wait_for

from opsin_server.api import webhook_service
from opsin_server.api.webhook_service import WebhookService, next_delay
from opsin_server.media.connect import Network
from opsin_server.storage.records import TENANT, NewJob
from opsin_server.storage.state import State
from opsin_server.storage.webhook_records import CLAIM_SECONDS, GIVE_UP_SECONDS, MOST, OLD_SECRET_SECONDS
from opsin_server.webhook_config import WebhookConfig
from opsin_server.webhook_metrics import WebhookMetrics
from support.clock import Clock
from support.webhook_host import Received, WebhookHost, webhook_host

KINDS = [
    "fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled", "batch.completed",
    "batch.failed", "batch.expired", "batch.cancelled",
]  # fmt: skip
PUBLIC = "https://hooks.example.com/x"


@pytest.fixture
def host() -> Iterator[WebhookHost]:
    with webhook_host() as found:
        yield found


Serve = Callable[..., openai.OpenAI]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def serve(state: State, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """A client of a server that delivers to this machine, or to those hosts alone that are allowed."""
    monkeypatch.setattr(webhook_service, "LOOK_SECONDS", 0.02)
    running: list[tuple[RunningServer, WebhookService]] = []

    def begin(allow: tuple[str, ...] = ("127.0.0.1",), network: Network | None = None) -> openai.OpenAI:
        config = WebhookConfig(webhook_allow=allow, webhook_timeout=60.0)
        service = WebhookService(config, state, WebhookMetrics(registry), network)
        server = RunningServer(FakeEngine(Script(b"hello")), webhooks=service)
        server.call(service.open)
        running.append((server, service))
        return server.client()

    yield begin
    for server, service in running:
        server.call(lambda one=service: one._chores._tasks[0].cancel())
        server.close()


@pytest.fixture
def client(serve: Serve) -> openai.OpenAI:
    return serve()


def cancelled_job(state: State, note: str = "") -> str:
    new = NewJob("here", {"metadata": {}}, "request" + note, note or None, ())
    job, _ = state.jobs.create(TENANT, new)
    state.jobs.move(TENANT, job.id, "cancelled")
    return job.id


def signatures(received: Received) -> list[str]:
    return received.headers["webhook-signature"].split()


def signed_with(received: Received, secret: str) -> str:
    said = f"{received.headers['webhook-id']}.{received.headers['webhook-timestamp']}.".encode() + received.body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return "v1," + base64.b64encode(hmac.new(key, said, hashlib.sha256).digest()).decode()


def test_an_event_is_verified_by_the_sdk(client: openai.OpenAI, state: State, host: WebhookHost) -> None:
    endpoint = client.webhooks.create(name="mine", url=host.url, event_types=KINDS[2:3])
    job_id = cancelled_job(state)
    (received,) = host.wait_for(1)
    event = client.webhooks.unwrap(received.body, received.headers, secret=endpoint.signing_secret)
    assert isinstance(event, FineTuningJobCancelledWebhookEvent)
    assert event.data.id == job_id
    assert event.id == received.headers["webhook-id"]
    assert event.id.startswith("evt_")
    assert event.object == "event"
    assert received.path == "/hook"
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(received.body + b" ", received.headers, secret=endpoint.signing_secret)


def test_endpoints_are_made_listed_changed_and_deleted(client: openai.OpenAI, clock: Clock) -> None:
    made = client.webhooks.create(name="a", url=PUBLIC, event_types=[KINDS[0], KINDS[0]])
    assert made.signing_secret.startswith("whsec_")
    assert made.event_types == [KINDS[0]]
    clock.ahead += 5
    second = client.webhooks.create(name="b", url=PUBLIC, event_types=KINDS)
    assert [one.id for one in client.webhooks.list(limit=1)] == [second.id, made.id]
    read = client.webhooks.retrieve(made.id)
    assert read.signing_secret_hint == "whsec_..." + made.signing_secret[-4:]
    assert not hasattr(read, "signing_secret")
    changed = client.webhooks.update(made.id, name="c").updated_at
    assert changed is not None
    assert changed >= made.created_at + 5
    clock.ahead += 5
    assert client.webhooks.update(made.id, name="c").updated_at == changed  # it was that already
    assert client.webhooks.event_types.list().data == KINDS
    assert client.webhooks.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.webhooks.retrieve(made.id)
    with pytest.raises(openai.NotFoundError) as unknown:
        client.webhooks.list(after=made.id)
    assert unknown.value.param == "after"


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "ftp://example.com/x"},
        {"url": "https://user:secret@example.com/"},
        {"url": "https://exa mple.com/"},
        {"url": "https://example.com/#here"},
        {"url": "https://"},
        {"event_types": []},
        {"event_types": ["response.completed"]},
        {"name": ""},
        {"name": "a\0b"},
    ],
)
def test_what_could_not_be_delivered_is_refused(client: openai.OpenAI, changes: dict[str, object]) -> None:
    given = {"name": "a", "url": PUBLIC, "event_types": KINDS} | changes
    with pytest.raises(openai.BadRequestError) as error:
        client.webhooks.create(**given)  # type: ignore[arg-type]
    assert "image" not in str(error.value)
    assert list(client.webhooks.list()) == []


def test_only_so_many_endpoints_are_kept(client: openai.OpenAI) -> None:
    for _ in range(MOST):
        client.webhooks.create(name="a", url=PUBLIC, event_types=KINDS)
    with pytest.raises(openai.BadRequestError, match=str(MOST)):
        client.webhooks.create(name="a", url=PUBLIC, event_types=KINDS)


def test_a_failed_delivery_is_tried_again_with_the_same_id_and_body(
    client: openai.OpenAI, state: State, host: WebhookHost, clock: Clock, registry: CollectorRegistry
) -> None:
    host.statuses = [500, 302]
    endpoint = client.webhooks.create(name="a", url=host.url, event_types=KINDS)
    cancelled_job(state)
    for attempt in (1, 2):
        host.wait_for(attempt)
        wait_for(lambda n=attempt: registry.get_sample_value("opsin_webhook_attempts_total", POSTPONED) >= n)
        clock.ahead += 2 * next_delay(attempt)
    first, second, third = host.wait_for(3)
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == third.headers["webhook-id"]
    assert first.body == second.body == third.body
    client.webhooks.unwrap(third.body, third.headers, secret=endpoint.signing_secret)
    wait_for(lambda: registry.get_sample_value("opsin_webhook_attempts_total", {"outcome": "delivered"}) == 1)
    clock.ahead += 24 * 3600
    assert not state.webhooks.any_due()
    assert {one.path for one in host.received} == {"/hook"}  # no redirect was followed


POSTPONED = {"outcome": "postponed"}


def test_what_is_never_taken_is_given_up(state: State, clock: Clock) -> None:
    state.webhooks.create(TENANT, "a", PUBLIC, KINDS)
    cancelled_job(state)
    attempts = 0
    while due := state.webhooks.claim_due(10):
        attempts += 1
        assert due[0].attempt == attempts
        delay = next_delay(attempts)
        if not state.webhooks.postpone(due[0], delay):
            break
        clock.ahead += delay + 1
    assert clock() - due[0].created > GIVE_UP_SECONDS - 2 * 3600
    clock.ahead += GIVE_UP_SECONDS
    assert not state.webhooks.any_due()
    assert attempts > 70  # an hour apart in the end


def test_an_attempt_that_nobody_answered_for_is_made_again(state: State, clock: Clock) -> None:
    state.webhooks.create(TENANT, "a", PUBLIC, KINDS)
    cancelled_job(state)
    (first,) = state.webhooks.claim_due(10)
    assert state.webhooks.claim_due(10) == []  # its server may be at it still
    clock.ahead += CLAIM_SECONDS
    (again,) = state.webhooks.claim_due(10)
    assert again.id == first.id


def test_each_endpoint_gets_what_it_wants(state: State) -> None:
    wants = state.webhooks.create(TENANT, "a", PUBLIC, KINDS)
    state.webhooks.create(TENANT, "b", PUBLIC, KINDS[:2])
    state.webhooks.create("another", "c", PUBLIC, KINDS)
    cancelled_job(state)
    assert [one.endpoint.id for one in state.webhooks.claim_due(10)] == [wants.id]


def test_a_deleted_endpoint_gets_nothing_more(state: State) -> None:
    endpoint = state.webhooks.create(TENANT, "a", PUBLIC, KINDS)
    cancelled_job(state)
    state.webhooks.delete(TENANT, endpoint.id)
    assert not state.webhooks.any_due()


def test_a_secret_is_rotated(client: openai.OpenAI, state: State, host: WebhookHost, clock: Clock) -> None:
    old = client.webhooks.create(name="a", url=host.url, event_types=KINDS)
    new = client.webhooks.rotate_secret(old.id, keep_old_secret_active_for_24_hours=True)
    assert new.signing_secret != old.signing_secret
    cancelled_job(state)
    (received,) = host.wait_for(1)
    assert signatures(received) == [signed_with(received, one.signing_secret) for one in (new, old)]
    clock.ahead += OLD_SECRET_SECONDS + 1
    cancelled_job(state, "a day later")
    received = host.wait_for(2)[1]
    assert signatures(received) == [signed_with(received, new.signing_secret)]
    newest = client.webhooks.rotate_secret(old.id)
    cancelled_job(state, "at once")
    received = host.wait_for(3)[2]
    assert signatures(received) == [signed_with(received, newest.signing_secret)]


def test_a_sample_is_sent_and_its_answer_told(client: openai.OpenAI, host: WebhookHost) -> None:
    endpoint = client.webhooks.create(name="a", url=host.url, event_types=KINDS)
    host.statuses = [418]
    result = client.webhooks.test(endpoint.id, event_type=KINDS[0])  # type: ignore[arg-type]
    assert (result.status_code, result.event_type) == (418, KINDS[0])
    sent = json.loads(host.received[0].body)
    assert sent["type"] == KINDS[0]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{port}/", "http://[::ffff:127.0.0.1]:{port}/", "http://localhost:{port}/"]
)
def test_an_address_inside_is_no_endpoint(serve: Serve, host: WebhookHost, url: str) -> None:
    client = serve(allow=())
    with pytest.raises(openai.BadRequestError, match="--webhook-allow"):
        client.webhooks.create(name="a", url=url.format(port=host.port), event_types=KINDS)
    endpoint = client.webhooks.create(name="a", url=PUBLIC, event_types=KINDS)
    with pytest.raises(openai.BadRequestError, match="--webhook-allow"):
        client.webhooks.update(endpoint.id, url=url.format(port=host.port))


def test_a_name_that_leads_inside_is_not_reached(serve: Serve, host: WebhookHost) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    client = serve(allow=(), network=Network(resolve=resolve))
    endpoint = client.webhooks.create(name="a", url=f"http://example.com:{host.port}/", event_types=KINDS)
    with pytest.raises(openai.BadRequestError, match="--webhook-allow") as failed:
        client.webhooks.test(endpoint.id, event_type=KINDS[0])  # type: ignore[arg-type]
    assert failed.value.code == "webhook_failed"
    assert host.received == []


def test_nobody_there_is_said(client: openai.OpenAI) -> None:
    endpoint = client.webhooks.create(name="a", url="http://127.0.0.1:9/", event_types=KINDS)
    with pytest.raises(openai.BadRequestError, match="could not be reached"):
        client.webhooks.test(endpoint.id, event_type=KINDS[0])  # type: ignore[arg-type]
