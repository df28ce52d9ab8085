"""Webhook endpoints, as rows, and the events that they have not acknowledged. A delivery is a row from the moment in
which what it tells of is one, in the same transaction, until it is acknowledged or given up."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from opsin_server.errors import BadRequest, NotFound
from opsin_server.storage.database import Database
from opsin_server.storage.file_records import new_id
from opsin_server.storage.records import Page, WebhookDelivery, WebhookEndpoint, checked_name
from opsin_server.storage.tables import WebhookDeliveryRow, WebhookEndpointRow

MOST = 50  # endpoints of a tenant: each is one more request an event
OLD_SECRET_SECONDS = 24 * 3600.0
GIVE_UP_SECONDS = 72 * 3600.0  # since the event, as at OpenAI
# After which an attempt that nobody has answered for is made again: longer than one takes, so that of several servers
# only one is at it.
CLAIM_SECONDS = 60.0
SECRET_BYTES = 32


class WebhookRecords:
    """Any thread, and on PostgreSQL any process, may use it. An endpoint that is not there raises NotFound."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database, self._now = database, now

    # ------------------------------------------------------------------------------------------------ endpoints

    def create(self, tenant: str, name: str, url: str, event_types: Sequence[str]) -> WebhookEndpoint:
        checked_name(name, "the endpoint's name", "name")
        now = self._now()
        with self._database.hold(f"webhooks of {tenant}"), self._database.write() as session:
            own = select(WebhookEndpointRow.id).where(WebhookEndpointRow.tenant == tenant)
            if len(session.scalars(own).all()) >= MOST:
                raise BadRequest(f"there are {MOST} webhook endpoints, and no more are kept")
            row = WebhookEndpointRow(
                tenant=tenant, id=new_id("webhook_"), name=name, url=url, event_types=list(event_types),
                secret=_new_secret(), created=now, updated=now,
            )  # fmt: skip
            session.add(row)
            session.flush()
            return self._endpoint(row)

    def get(self, tenant: str, endpoint_id: str) -> WebhookEndpoint:
        with self._database.read() as session:
            return self._endpoint(_row(session, tenant, endpoint_id))

    def page(self, tenant: str, *, after: str | None, limit: int) -> Page[WebhookEndpoint]:
        """The newest first."""
        with self._database.read() as session:
            wanted = [WebhookEndpointRow.tenant == tenant]
            place = tuple_(WebhookEndpointRow.created, WebhookEndpointRow.id)
            if after is not None:
                last = _row(session, tenant, after, param="after")
                wanted.append(place < tuple_(last.created, last.id))
            order = WebhookEndpointRow.created.desc(), WebhookEndpointRow.id.desc()
            rows = session.scalars(select(WebhookEndpointRow).where(*wanted).order_by(*order).limit(limit + 1)).all()
            return Page(tuple(map(self._endpoint, rows[:limit])), len(rows) > limit)

    def change(self, tenant: str, endpoint_id: str, changes: Mapping[str, Any]) -> WebhookEndpoint:
        """changes: of name, url and event_types."""
        if "name" in changes:
            checked_name(changes["name"], "the endpoint's name", "name")
        with self._database.write() as session:
            row = _row(session, tenant, endpoint_id, lock=True)
            if any(getattr(row, name) != value for name, value in changes.items()):
                for name, value in changes.items():
                    setattr(row, name, value)
                row.updated = self._now()
            return self._endpoint(row)

    def rotate_secret(self, tenant: str, endpoint_id: str, *, keep_old: bool) -> WebhookEndpoint:
        """keep_old: whether what it had is signed with as well, for a day."""
        now = self._now()
        with self._database.write() as session:
            row = _row(session, tenant, endpoint_id, lock=True)
            row.old_secret = row.secret if keep_old else None
            row.old_secret_until = now + OLD_SECRET_SECONDS if keep_old else None
            row.secret, row.updated = _new_secret(), now
            return self._endpoint(row)

    def delete(self, tenant: str, endpoint_id: str) -> None:
        """And what is still to be delivered to it."""
        with self._database.write() as session:
            session.delete(_row(session, tenant, endpoint_id, lock=True))

    # ------------------------------------------------------------------------------------------------ deliveries

    def claim_due(self, most: int) -> list[WebhookDelivery]:
        """Of all tenants, what is to be tried now, the oldest first; nobody else gets the same for a while."""
        now = self._now()
        with self._database.write() as session:
            due = select(WebhookDeliveryRow).where(WebhookDeliveryRow.due <= now).order_by(WebhookDeliveryRow.due)
            found = []
            for row in session.scalars(due.limit(most).with_for_update(skip_locked=True)):
                row.attempts, row.due = row.attempts + 1, now + CLAIM_SECONDS
                endpoint = self._endpoint(_row(session, row.tenant, row.endpoint))
                found.append(
                    WebhookDelivery(row.tenant, row.id, endpoint, row.type, row.data, row.attempts, row.created)
                )
            return found

    def any_due(self) -> bool:
        with self._database.read() as session:
            due = select(WebhookDeliveryRow.id).where(WebhookDeliveryRow.due <= self._now()).limit(1)
            return session.scalar(due) is not None

    def finished(self, delivery: WebhookDelivery) -> None:
        """It is acknowledged, or given up."""
        with self._database.write() as session:
            row = session.get(WebhookDeliveryRow, (delivery.tenant, delivery.id))
            if row is not None:
                session.delete(row)

    def postpone(self, delivery: WebhookDelivery, seconds: float) -> bool:
        """False where it is given up: it would be too old by then."""
        due = self._now() + seconds
        if due - delivery.created > GIVE_UP_SECONDS:
            self.finished(delivery)
            return False
        with self._database.write() as session:
            row = session.get(WebhookDeliveryRow, (delivery.tenant, delivery.id))
            if row is not None:
                row.due = due
        return True

    def _endpoint(self, row: WebhookEndpointRow) -> WebhookEndpoint:
        valid = row.old_secret is not None and (row.old_secret_until or 0) > self._now()
        old = (row.old_secret,) if valid and row.old_secret is not None else ()
        return WebhookEndpoint(
            row.id, row.name, row.url, tuple(row.event_types), (row.secret, *old), row.created, row.updated
        )


def announce(session: Session, tenant: str, kind: str, data: Mapping[str, Any], now: float) -> None:
    """An event for all endpoints that want its kind, within the transaction that makes what it tells of."""
    for row in session.scalars(select(WebhookEndpointRow).where(WebhookEndpointRow.tenant == tenant)):
        if kind in row.event_types:
            session.add(
                WebhookDeliveryRow(
                    tenant=tenant, id=new_id("evt_"), endpoint=row.id, type=kind, data=dict(data), attempts=0, due=now,
                    created=now,
                )
            )  # fmt: skip


def _row(
    session: Session, tenant: str, endpoint_id: str, *, lock: bool = False, param: str = "webhook_endpoint_id"
) -> WebhookEndpointRow:
    row = session.get(WebhookEndpointRow, (tenant, endpoint_id), with_for_update=lock or None)
    if row is None:
        raise NotFound(f"No such webhook endpoint: {endpoint_id[:100]}", param=param)
    return row


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
