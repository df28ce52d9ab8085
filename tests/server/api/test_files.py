"""Files and uploads as OpenAI's SDK asks for them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
from fake_engine import FakeEngine, Script
from openai.types.file_object import FileObject
from running_server import RunningServer

from opsin_server.api import file_service
from opsin_server.api.file_service import FileService
from opsin_server.file_config import FileConfig
from opsin_server.storage.file_records import UPLOAD_SECONDS
from opsin_server.storage.state import State
from support.clock import Clock

LINE = b'{"messages": []}\n'


@pytest.fixture
def server(state: State) -> Iterator[RunningServer]:
    config = FileConfig(max_file_bytes=2**20, max_upload_bytes=2**22)
    running = RunningServer(FakeEngine(Script(b"hello")), files=FileService(config, state))
    yield running
    running.close()


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    return server.client()


def refused(ask: Callable[[], object]) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as error:
        ask()
    return error.value


def test_a_file_is_kept_listed_read_and_deleted(client: openai.OpenAI) -> None:
    made = client.files.create(file=("train.jsonl", LINE * 3), purpose="fine-tune")
    assert isinstance(made, FileObject)
    assert made.id.startswith("file-")
    assert (made.bytes, made.filename, made.purpose, made.status) == (
        3 * len(LINE),
        "train.jsonl",
        "fine-tune",
        "processed",
    )
    assert made.expires_at is None
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == LINE * 3
    assert client.files.wait_for_processing(made.id, poll_interval=0.01) == made
    assert list(client.files.list()) == [made]
    assert client.files.delete(made.id).deleted
    assert list(client.files.list()) == []
    for ask in (client.files.retrieve, client.files.delete, client.files.content):
        assert refused(lambda ask=ask: ask(made.id)).status_code == 404  # type: ignore[misc]


def test_names_come_back_as_they_were(client: openai.OpenAI) -> None:
    for name in ("übung 1.jsonl", '../../etc/"passwd"', "a;b.jsonl"):
        made = client.files.create(file=(name, b"x"), purpose="user_data")
        assert client.files.retrieve(made.id).filename == made.filename
        assert made.filename == name
        assert client.files.content(made.id).read() == b"x"


def test_pages(client: openai.OpenAI, clock: Clock) -> None:
    made = []
    for number in range(7):
        clock.ahead += 1
        purpose = "vision" if number % 2 else "fine-tune"
        made.append(client.files.create(file=(f"{number}", b"x"), purpose=purpose).id)  # type: ignore[arg-type]
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(limit=3, order="asc")] == made
    assert [file.id for file in client.files.list(limit=1, order="asc", purpose="vision")] == made[1::2]
    page = client.files.list(limit=3, after=made[5])
    assert [file.id for file in page.data] == made[4:1:-1]
    assert page.has_more
    assert ((none := client.files.list(limit=0)).data, none.has_more) == ([], True)
    for wrong in ({"limit": -1}, {"limit": 10_001}, {"order": "up"}, {"extra_query": {"page": 2}}):
        assert refused(lambda wrong=wrong: client.files.list(**wrong)).status_code == 400  # type: ignore[misc]
    assert refused(lambda: client.files.list(after="file-none")).status_code == 404


def test_a_file_expires(client: openai.OpenAI, clock: Clock, state: State) -> None:
    lasts = {"anchor": "created_at", "seconds": 3600}
    made = client.files.create(file=("a", b"x"), purpose="vision", expires_after=lasts)  # type: ignore[arg-type]
    assert made.expires_at == pytest.approx(made.created_at + 3600, abs=1)
    clock.ahead += 3590
    assert client.files.retrieve(made.id) == made
    clock.ahead += 20
    assert refused(lambda: client.files.retrieve(made.id)).status_code == 404
    assert list(client.files.list()) == []
    state.stored_files.expire()
    wrong = {"anchor": "created_at", "seconds": 60}
    error = refused(lambda: client.files.create(file=("a", b"x"), purpose="vision", expires_after=wrong))  # type: ignore[arg-type]
    assert "3,600 to 2,592,000" in error.message


def test_other_purposes_are_refused_by_name(client: openai.OpenAI) -> None:
    error = refused(lambda: client.files.create(file=("a", b"x"), purpose="other"))  # type: ignore[arg-type]
    assert (error.status_code, error.param) == (400, "purpose")  # type: ignore[attr-defined]
    assert "it must be one of fine-tune, batch, vision, user_data, assistants, evals" in error.message


def test_files_on_which_nothing_acts_are_kept_and_given_back(client: openai.OpenAI) -> None:
    kept = client.files.create(file=("a", b"x"), purpose="evals")
    assert (client.files.content(kept.id).read(), client.files.list(purpose="evals").data) == (b"x", [kept])


def test_an_upload_of_no_bytes_becomes_an_empty_file(client: openai.OpenAI) -> None:
    upload = client.uploads.create(bytes=0, filename="a", mime_type="text/plain", purpose="assistants")
    file = client.uploads.complete(upload.id, part_ids=[]).file
    assert file is not None
    assert (file.bytes, client.files.content(file.id).read()) == (0, b"")
    upload = client.uploads.create(bytes=1, filename="a", mime_type="text/plain", purpose="assistants")
    assert "the parts have 0 bytes" in refused(lambda: client.uploads.complete(upload.id, part_ids=[])).message


def test_forms_that_are_wrong(server: RunningServer) -> None:
    def post(**form: object) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/files", trust_env=False, **form)  # type: ignore[arg-type]

    assert post(files={"file": ("a", b"x")}).json()["error"]["param"] == "purpose"
    assert post(files={"other": ("a", b"x")}, data={"purpose": "vision"}).status_code == 400
    assert post(json={"purpose": "vision"}).status_code == 400
    assert post(files={"file": ("a", b"x")}, data={"purpose": "vision", "more": "1"}).json()["error"]["param"] == "more"
    large = post(files={"file": ("a", bytes(2**20 + 1))}, data={"purpose": "vision"})
    assert large.status_code == 413
    assert "--max-file-bytes" in large.json()["error"]["message"]
    empty = post(files={"file": ("a", b"")}, data={"purpose": "vision"})
    assert empty.status_code == 400
    assert "empty" in empty.json()["error"]["message"]


def test_a_file_in_parts(client: openai.OpenAI) -> None:
    data = bytes(range(256)) * 8000
    pieces = [data[: 2**20], data[2**20 :]]
    upload = client.uploads.create(bytes=len(data), filename="t.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    assert upload.status == "pending"
    second = client.uploads.parts.create(upload.id, data=pieces[1])
    first = client.uploads.parts.create(upload.id, data=pieces[0])
    done = client.uploads.complete(upload.id, part_ids=[first.id, second.id], md5=hashlib.md5(data).hexdigest())
    assert done.status == "completed"
    assert done.file is not None
    assert client.files.content(done.file.id).read() == data
    for ask in (client.uploads.cancel, lambda name: client.uploads.complete(name, part_ids=[first.id])):
        error = refused(lambda ask=ask: ask(upload.id))  # type: ignore[misc]
        assert (error.status_code, error.code) == (400, "invalid_state")  # type: ignore[attr-defined]
    again = client.uploads.upload_file_chunked(
        file=data, filename="t", bytes=len(data), mime_type="text/plain", purpose="fine-tune", part_size=500_000
    )
    assert again.file is not None
    assert client.files.content(again.file.id).read() == data


def test_parts_that_are_not_what_was_said(client: openai.OpenAI, clock: Clock) -> None:
    def begun(size: int = 4) -> tuple[str, str]:
        upload = client.uploads.create(bytes=size, filename="t", mime_type="text/plain", purpose="vision")
        return upload.id, client.uploads.parts.create(upload.id, data=io.BytesIO(b"four")).id

    upload, part = begun()
    for ids, words in (([part, part], "twice"), (["part_x"], "no part part_x"), ([], "")):
        assert words in refused(lambda ids=ids: client.uploads.complete(upload, part_ids=ids)).message  # type: ignore[misc]
    assert "MD5" in refused(lambda: client.uploads.complete(upload, part_ids=[part], md5="0" * 32)).message
    assert client.uploads.complete(upload, part_ids=[part]).status == "completed"
    upload, part = begun(5)
    assert "4 bytes together" in refused(lambda: client.uploads.complete(upload, part_ids=[part])).message
    assert client.uploads.cancel(upload).status == "cancelled"
    assert "is cancelled" in refused(lambda: client.uploads.parts.create(upload, data=b"x")).message
    upload, part = begun()
    clock.ahead += UPLOAD_SECONDS + 1
    assert "is expired" in refused(lambda: client.uploads.complete(upload, part_ids=[part])).message
    assert refused(lambda: client.uploads.parts.create("upload_none", data=b"x")).status_code == 404
    large = {"filename": "t", "mime_type": "text/plain", "purpose": "vision"}
    assert refused(lambda: client.uploads.create(bytes=2**22 + 1, **large)).status_code == 413  # type: ignore[arg-type]


def test_a_part_has_a_limit(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opsin_server.api.routes.uploads.PART_BYTES", 100)
    upload = client.uploads.create(bytes=200, filename="t", mime_type="text/plain", purpose="vision")
    assert refused(lambda: client.uploads.parts.create(upload.id, data=bytes(200))).status_code == 413
    assert file_service.PART_BYTES == 64 * 2**20


def test_bytes_of_files_that_are_gone_are_collected(client: openai.OpenAI, state: State, clock: Clock) -> None:
    kept, gone = (client.files.create(file=("a", data), purpose="vision") for data in (b"kept", b"gone"))
    client.files.delete(gone.id)
    assert state.blobs.collect().rows == 0
    clock.ahead += 2 * 24 * 3600
    assert state.blobs.collect().rows == 1
    assert client.files.content(kept.id).read() == b"kept"


def test_a_check_needs_no_body(server: RunningServer, client: openai.OpenAI) -> None:
    made = client.files.create(file=("train.jsonl", LINE), purpose="fine-tune")
    answers = [httpx.post(f"{server.url}/v1/files/{made.id}/check", **body) for body in ({}, {"json": {}})]  # type: ignore[arg-type]
    assert answers[0].json() == answers[1].json()
    assert "JSON" not in answers[0].text


def test_what_is_wrong_is_said_of_its_field(client: openai.OpenAI) -> None:
    for name in ("a" * 600, "a\x9b"):
        error = refused(lambda name=name: client.files.create(file=(name, b"x"), purpose="user_data"))  # type: ignore[misc]
        assert (error.param, error.code) == ("file", "invalid_value")  # type: ignore[attr-defined]
    unknown = refused(lambda: client.files.list(after="file-none"))
    assert (unknown.status_code, unknown.param) == (404, "after")  # type: ignore[attr-defined]


def test_a_form_that_ends_too_soon_is_refused(server: RunningServer, client: openai.OpenAI) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--b\r\n'
    head += b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        for end in (b"half", b"half\r\n", b"half\r\n--b", b"half\r\n--b\r\n", b"half\r\n--b-"):
            answer = http.post("/v1/files", content=head + end, headers=headers)
            assert answer.status_code == 400, end
        for end in (b"all\r\n--b--", b"all\r\n--b--\r\n"):
            assert http.post("/v1/files", content=head + end, headers=headers).status_code == 200
    assert [file.bytes for file in client.files.list()] == [3, 3]
