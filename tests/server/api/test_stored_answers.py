"""Answers that are kept: through OpenAI's SDK, over a store that a test has opened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fake_engine import FakeEngine, Script
from running_server import RunningServer

from opsin_server.answer_config import AnswerConfig
from opsin_server.api import answer_store
from opsin_server.api.answer_store import DAY, AnswerStore
from opsin_server.errors import StorageFailed
from opsin_server.storage.state import State
from opsin_server.text.reasoning import ReasoningFormat
from support.clock import Clock

CHAT: dict[str, Any] = {"model": "opsin-test", "messages": [{"role": "user", "content": "hi"}], "store": True}
ASK: dict[str, Any] = {"model": "opsin-test", "input": "hi"}


@pytest.fixture
def server(state: State) -> Iterator[RunningServer]:
    store = AnswerStore(AnswerConfig(store=True, store_max=4), state)
    server = RunningServer(FakeEngine(Script(b"hello")), answers=store)
    yield server
    server.close()


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    return server.client()


def ids(page: Any) -> list[str]:
    return [one.id for one in page.data]


def test_chat_completions_are_kept_found_changed_and_deleted(client: openai.OpenAI, clock: Clock) -> None:
    chats = client.chat.completions
    whole = chats.create(**CHAT, metadata={"topic": "invoices", "n": "1"}, n=2)
    clock.ahead += 1
    chunks = list(chats.create(**CHAT, metadata={"topic": "invoices"}, stream=True))
    clock.ahead += 1
    other = chats.create(**{**CHAT, "model": "gpt-4o-2024-08-06"}, metadata={"topic": "else"})
    chats.create(**{**CHAT, "store": False})
    assert ids(chats.list()) == [whole.id, chunks[0].id, other.id]
    assert ids(chats.list(order="desc", limit=1)) == [other.id]
    assert [one.id for one in chats.list(limit=1)] == [whole.id, chunks[0].id, other.id]  # page by page
    assert ids(chats.list(metadata={"topic": "invoices"})) == [whole.id, chunks[0].id]
    assert ids(chats.list(metadata={"topic": "invoices", "n": "1"})) == [whole.id]
    assert ids(chats.list(model="gpt-4o-2024-08-06")) == [other.id]
    kept = chats.retrieve(whole.id)
    assert kept.to_dict() == whole.to_dict() | {"metadata": {"topic": "invoices", "n": "1"}}
    assert chats.retrieve(chunks[0].id).choices[0].message.content == "hello"
    assert chats.update(whole.id, metadata={"topic": "none"}).to_dict()["metadata"] == {"topic": "none"}
    assert ids(chats.list(metadata={"topic": "invoices"})) == [chunks[0].id]
    assert chats.delete(whole.id).deleted
    for call in (chats.retrieve, chats.delete, chats.messages.list):
        with pytest.raises(openai.NotFoundError, match="No such chat completion"):
            call(whole.id)


def test_messages_before_an_answer_are_kept_as_they_were_said(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
    messages: Any = [{"role": "system", "content": "a"}, {"role": "user", "content": parts}]
    answer = client.chat.completions.create(**{**CHAT, "messages": messages})
    first, second = client.chat.completions.messages.list(answer.id, limit=1)  # page by page
    assert (first.role, first.content, first.content_parts) == ("system", "a", None)
    assert (second.role, second.content) == ("user", None)
    assert [part.to_dict() for part in second.content_parts or ()] == parts


def test_a_response_goes_on_with_one_that_is_kept(server: RunningServer) -> None:
    client = server.client(_strict_response_validation=True)
    one = client.responses.create(**ASK, instructions="Be short.")
    two = client.responses.create(**ASK, previous_response_id=one.id, stream=False)
    assert two.previous_response_id == one.id
    assert client.responses.retrieve(two.id).to_dict() == two.to_dict()
    items = client.responses.input_items.list(two.id, order="asc").data
    assert [(item.type, item.role) for item in items] == [
        ("message", "user"), ("message", "assistant"), ("message", "user"),
    ]  # fmt: skip
    assert items[1] == one.output[0]
    client.responses.delete(one.id)  # what goes on from it has it all
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**ASK, previous_response_id=one.id)
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")
    again = client.responses.create(**ASK, previous_response_id=two.id)
    assert len(client.responses.input_items.list(again.id).data) == 5
    tokens = [answer.usage.input_tokens for answer in (one, two, again) if answer.usage]
    assert tokens == [len("Be short.hi"), len("hihellohi"), len("hihellohihellohi")]


def test_a_kept_response_comes_back_as_events(server: RunningServer) -> None:
    server.services.encoder.reasoning = ReasoningFormat("h", "e")  # the server says "hello"
    client = server.client(_strict_response_validation=True)
    live = list(client.responses.create(**ASK, stream=True))
    kept = client.responses.retrieve(live[-1].response.id)
    again = list(client.responses.retrieve(kept.id, stream=True))
    assert again[-1].response.to_dict() == live[-1].response.to_dict() == kept.to_dict()
    kinds = [event.type for event in live]
    assert [event.type for event in again] == [kind for i, kind in enumerate(kinds) if kind != kinds[i - 1]]
    for event in (*live, *again):
        event.sequence_number = 0
    whole = [event.to_dict() for event in live if not event.type.endswith(".delta")]
    assert [event.to_dict() for event in again if not event.type.endswith(".delta")] == whole
    rest = list(client.responses.retrieve(kept.id, stream=True, starting_after=3, include_obfuscation=True))
    assert [event.sequence_number for event in rest] == list(range(4, len(again)))
    assert all(len(event.delta) + len(event.obfuscation) == 32 for event in rest if hasattr(event, "delta"))
    assert client.responses.cancel(kept.id).to_dict() == kept.to_dict()


def test_a_conversation_is_made_short_and_goes_on(server: RunningServer) -> None:
    strict, client = server.client(_strict_response_validation=True), server.client()  # it knows no users' messages
    one = client.responses.create(**ASK)
    short = strict.responses.compact(model="opsin-test")
    assert ([item.type for item in short.output], short.usage.output_tokens) == (["compaction"], len("hello"))
    loose = client.responses.compact(model="opsin-test", previous_response_id=one.id, input="more")
    first, second, summary = loose.output
    assert [part.text for item in (first, second) for part in item.content] == ["hi", "more"]  # type: ignore[union-attr]
    items: Any = [first.to_dict(), second.to_dict(), summary.to_dict(), {"role": "user", "content": "go on"}]
    two = client.responses.create(model="opsin-test", input=items)
    assert two.usage is not None
    assert two.usage.input_tokens == len("himorehellogo on")
    assert (
        client.responses.input_items.list(two.id, order="asc").data[2].to_dict()["encrypted_content"]
        == items[2]["encrypted_content"]
    )
    for content in ("gAAA", "opsin1.!", "opsin1._w=="):
        items[2]["encrypted_content"] = content
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="opsin-test", input=items)
        assert caught.value.param == "input[2].encrypted_content"


def test_an_item_is_referred_to_by_its_id(client: openai.OpenAI) -> None:
    one = client.responses.create(**ASK)
    said = client.responses.input_items.list(one.id).data[0]
    reference = [{"type": "item_reference", "id": own} for own in (said.id, one.output[0].id)]
    two = client.responses.create(model="opsin-test", input=[*reference, {"role": "user", "content": "more"}])  # type: ignore[list-item]
    assert [item.id for item in client.responses.input_items.list(two.id, order="asc").data][:2] == [
        said.id, one.output[0].id,
    ]  # fmt: skip
    with pytest.raises(openai.NotFoundError, match="No such item"):
        client.responses.create(model="opsin-test", input=[{"type": "item_reference", "id": said.id + "7"}])


def test_the_oldest_leave_and_time_ends(client: openai.OpenAI, server: RunningServer, clock: Clock) -> None:
    made = []
    for _ in range(5):
        made.append(client.chat.completions.create(**CHAT).id)
        clock.ahead += 1
    assert ids(client.chat.completions.list()) == made[1:]
    clock.ahead += 30 * DAY - 3
    assert ids(client.chat.completions.list()) == made[3:]
    server.services.answers._records.expire(30 * DAY)
    clock.ahead = 0
    assert ids(client.chat.completions.list()) == made[3:]


def test_what_is_too_large_is_refused_or_not_kept(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("opsin_server.api.answer_store", "opsin_server.api.answer.response_history"):
        monkeypatch.setattr(f"{module}.MAX_SAID_BYTES", 20)
    for create, body in ((client.chat.completions.create, CHAT), (client.responses.create, {**ASK, "store": True})):
        with pytest.raises(openai.BadRequestError, match="at most 20 are kept") as caught:
            create(**body)
        assert caught.value.param == "store"
    answer = client.responses.create(**ASK)
    assert json.loads(answer.to_json())["store"] is False
    assert answer_store.MAX_SAID_BYTES == 20


def test_metadata_is_checked_where_it_is_kept(client: openai.OpenAI) -> None:
    for metadata in ({"a": 1}, {"a": "x" * 513}, {str(n): "" for n in range(17)}, {"a": "\0"}, "zz", [[1]]):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**CHAT, metadata=metadata)
        assert caught.value.param == "metadata"
        client.chat.completions.create(**{**CHAT, "store": False}, metadata=metadata)


def test_no_answer_is_complete_before_it_is_kept(
    client: openai.OpenAI, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StorageFailed("the disk is full")

    monkeypatch.setattr(server.services.answers._records, "add", full)
    with pytest.raises(openai.InternalServerError, match="disk is full"):
        client.chat.completions.create(**CHAT)
    with pytest.raises(openai.APIError, match="disk is full"):
        list(client.chat.completions.create(**CHAT, stream=True))
    kinds = [event.type for event in client.responses.create(**ASK, stream=True)]
    assert "response.completed" not in kinds
    assert kinds[-2:] == ["error", "response.failed"]
