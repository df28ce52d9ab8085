"""Everything that may be wrong with a training file, through the API: said with its line, as an event and in the job's
error; or left out and said, where that was asked for."""

from __future__ import annotations

import gzip
import json
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob
from PIL import Image

from support.served import Served
from support.talk import MINI, assistant, data_url, png, user

GOOD = 12  # rows in front of each wrong one
OVER = ("succeeded", "failed", "cancelled")
SMALL = Image.new("RGB", (8, 8), (200, 30, 30))
NOISE = Image.effect_noise((300, 300), 200).convert("RGB")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A small PNG of side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes((side + 1) * 100), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def asks(*parts: Any) -> dict[str, Any]:
    return {"messages": [user(*parts), assistant("yes")]}


def image(url: str) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, part]}, assistant("yes")]}


def pair(**changes: Any) -> dict[str, Any]:
    row = {
        "input": {"messages": [user("?")]},
        "preferred_output": [assistant("a")],
        "non_preferred_output": [assistant("b")],
    }
    return {name: value for name, value in (row | changes).items() if value is not None}


@dataclass(frozen=True)
class Fault:
    name: str
    row: Any  # bytes are a line as it is
    said: str

    @property
    def line(self) -> bytes:
        return self.row if isinstance(self.row, bytes) else json.dumps(self.row).encode()


FAULTS = [
    # images
    Fault("too many", asks(*[SMALL] * 4, "?"), "the row has 4 images; the limit is 3 (--max-images)"),
    Fault("too large a file", asks(NOISE, "?"), "bytes; the limit is 100,000 (--max-image-bytes)"),
    Fault("pixel bomb", image(data_url(bomb(30_000))), "30000 x 30000 = 900,000,000 pixels; the limit is 1,000,000"),
    Fault(
        "another format",
        image(data_url(b"BM" + bytes(60), "image/bmp")),
        "The image is BMP; PNG, JPEG, WEBP and GIF are accepted",
    ),
    Fault("svg", image(data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml")), "The image is SVG"),
    Fault("no image behind a png's name", image(data_url(b"<html>", "image/png")), "The image is HTML"),
    Fault("cut off", image(data_url(png(SMALL)[:-30])), "The PNG is truncated"),
    Fault("no base64", image("data:image/png;base64,%%%%"), "not valid base64"),
    Fault(
        "the assistant's",
        {"messages": [user("?"), {"role": "assistant", "content": user(SMALL, "x")["content"]}]},
        '"image_url" is accepted in user messages only',
    ),
    Fault("loopback", image("http://127.0.0.1/a.png"), "its address is not public"),
    Fault("localhost", image("http://localhost/a.png"), "its address is not public"),
    Fault("metadata service", image("http://169.254.169.254/latest"), "its address is not public"),
    Fault("private network", image("http://10.0.0.1/a.png"), "its address is not public"),
    Fault("loopback of IPv6", image("http://[::1]/a.png"), "its address is not public"),
    Fault("mapped loopback", image("http://[::ffff:127.0.0.1]/a.png"), "its address is not public"),
    Fault("file URL", image("file:///etc/passwd"), "is neither a data: nor an http(s) URL"),
    Fault("path", image("/etc/passwd"), "is a path: an uploaded file may hold data: and http(s) URLs only"),
    Fault("path upwards", image("../../secret.png"), "is a path"),
    Fault("another scheme", image("ftp://example.com/a.png"), "is neither a data: nor an http(s) URL"),
    # rows
    Fault("no JSON", b"{", "not valid JSON"),
    Fault("no object", [1], "must be a JSON object, not a list"),
    Fault("no UTF-8", b'{"messages": "\xff"}', "not UTF-8: byte 0xff at 15"),
    Fault("NaN", b'{"messages": NaN}', "NaN is not JSON"),
    Fault("a key twice", b'{"messages": [], "messages": []}', "stands twice in one object"),
    Fault("no messages", {"messages": []}, "messages is empty"),
    Fault("nothing known", {"text": "x"}, "the row has no 'messages'"),
    Fault("an unknown field", asks("?") | {"wrong": 1}, "is not known here"),
    Fault("no answer", {"messages": [user("?")]}, "the last message must be the assistant's"),
    Fault(
        "the user has the last word",
        {"messages": [user("?"), assistant("a"), user("!")]},
        "messages[2]: the last message must be the assistant's",
    ),
    Fault("an empty answer", {"messages": [user("?"), assistant("")]}, "must not be null or empty"),
    Fault(
        "null for an answer",
        {"messages": [user("?"), {"role": "assistant", "content": None}]},
        "must not be null or empty",
    ),
    Fault("nothing to learn", {"messages": [user("?"), assistant("a") | {"weight": 0}]}, "holds nothing to be learned"),
    Fault("a weight of 2", {"messages": [user("?"), assistant("a") | {"weight": 2}]}, "a weight is 0 or 1"),
    Fault(
        "an unknown role",
        {"messages": [{"role": "narrator", "content": "x"}, assistant("a")]},
        "the roles accepted are",
    ),
    Fault("tools", asks("?") | {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    Fault(
        "fewer tags than pictures",
        asks("<image> <image>") | {"images": [data_url(SMALL)]},
        "2 places for images, and the row has 1 images",
    ),
    Fault("a preference among conversations", pair(), "the row is a preference, and those before are a conversation"),
    Fault("a preference without the other", pair(non_preferred_output=None), "non_preferred_output must be"),
    Fault("a preference without its input", pair(input=None), "input must be an object with 'messages'"),
]
WHOLE = [
    ("a JSON array", json.dumps([asks("?")] * 12).encode(), "the file is one JSON array"),
    ("UTF-16", (json.dumps(asks("?")) + "\n").encode("utf-16"), "the file is UTF-16"),
    ("gzip", gzip.compress(b"x"), "the file is gzip"),
    ("Parquet", b"PAR1" + bytes(20), "the file is Parquet"),
    ("nothing", b"\n", "has 0 rows to train on; at least 10 are needed"),
    ("too few rows", (json.dumps(asks("?")) + "\n").encode() * 9, "has 9 rows to train on; at least 10 are needed"),
]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    limits = ("--max-images", "3", "--max-image-bytes", "100000", "--max-image-pixels", "1000000")
    with Served(*limits) as served:
        yield served.client()
        served.close()


def good(count: int) -> list[bytes]:
    return [json.dumps(asks(f"{number}?")).encode() for number in range(count)]


def job_of(client: openai.OpenAI, data: bytes, until: tuple[str, ...] = OVER, **options: Any) -> FineTuningJob:
    file = client.files.create(file=("rows.jsonl", data), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=MINI.name, training_file=file.id, extra_body={"opsin": options})
    end = time.monotonic() + 90
    while (job := client.fine_tuning.jobs.retrieve(job.id)).status not in until:
        assert time.monotonic() < end, job
        time.sleep(0.05)
    return job


def told(client: openai.OpenAI, job: FineTuningJob, level: str) -> list[str]:
    events = client.fine_tuning.jobs.list_events(job.id, limit=100)
    return [event.message for event in events if event.level == level][::-1]


@pytest.mark.nightly
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_refuses_the_file_with_its_line(fault: Fault, client: openai.OpenAI) -> None:
    job = job_of(client, b"\n".join([*good(GOOD), fault.line, b""]))
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")
    first, *_ = told(client, job, "error")
    assert first.startswith(f"line {GOOD + 1}: ")
    assert fault.said in first
    assert first in (job.error.message or "")


def test_all_faults_are_told(client: openai.OpenAI) -> None:
    """A file of twenty at a time: more are counted, and not told."""
    for first in range(0, len(FAULTS), 20):
        faults = FAULTS[first : first + 20]
        job = job_of(client, b"\n".join([*good(GOOD), *(fault.line for fault in faults), b""]))
        assert job.error is not None
        assert job.error.message is not None
        said = told(client, job, "error")
        for number, (fault, text) in enumerate(zip(faults, said[:-1], strict=True), GOOD + 1):
            assert text.startswith(f"line {number}: ")
            assert fault.said in text
        assert job.error.message == f"the training file is refused: {said[0]} (and {len(faults) - 1} more)"
        assert said[-1] == f"The job failed: {job.error.message}"


@pytest.mark.parametrize(("name", "data", "said"), WHOLE, ids=[name for name, _, _ in WHOLE])
def test_a_file_that_is_none_is_refused(name: str, data: bytes, said: str, client: openai.OpenAI) -> None:
    job = job_of(client, data)
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "invalid_training_file")
    assert said in (job.error.message or "")
    assert any(said in message for message in told(client, job, "error"))


def test_all_faults_are_left_out_where_that_is_asked_for(client: openai.OpenAI) -> None:
    """They stand between good rows, of which none is lost."""
    lines = [line for fault, row in zip(FAULTS, good(len(FAULTS)), strict=True) for line in (fault.line, row)]
    job = job_of(client, b"\n".join([*good(1), *lines, b""]), until=("running", *OVER), on_bad_row="skip")
    client.fine_tuning.jobs.cancel(job.id)
    said = told(client, job, "warn")
    assert f"training_file: {len(FAULTS)} rows are wrong, and left out" in said
    shown = [text for text in said if text.startswith("training_file: line ")]
    assert len(shown) == 20
    for number, (fault, text) in enumerate(zip(FAULTS, shown, strict=False)):
        assert text.startswith(f"training_file: line {2 + 2 * number}: ")
        assert fault.said in text
    assert f"training_file: {len(FAULTS) - 20} more faults" in said


def test_long_rows_by_what_was_asked_for(client: openai.OpenAI) -> None:
    long = json.dumps(asks("word " * 200)).encode()
    data = b"\n".join([*good(GOOD), long, b""])
    refused = job_of(client, data, max_seq_length=64, on_long_row="refuse")
    (first, *_) = told(client, refused, "error")
    assert first.startswith(f"line {GOOD + 1}: the row has ")
    dropped = job_of(client, data, until=("running", *OVER), max_seq_length=64)
    client.fine_tuning.jobs.cancel(dropped.id)
    assert told(client, dropped, "warn") == ["training_file: 1 rows: longer than max_seq_length, and left out"]


def test_a_validation_file_is_checked_as_well(client: openai.OpenAI) -> None:
    train = client.files.create(file=("a.jsonl", b"\n".join(good(GOOD))), purpose="fine-tune").id
    valid = client.files.create(file=("b.jsonl", b"\n".join([*good(1), b"{"])), purpose="fine-tune").id
    job = client.fine_tuning.jobs.create(model=MINI.name, training_file=train, validation_file=valid)
    end = time.monotonic() + 60
    while (job := client.fine_tuning.jobs.retrieve(job.id)).status not in OVER:
        assert time.monotonic() < end, job
        time.sleep(0.05)
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_validation_file", "validation_file")
    assert (job.error.message or "").startswith("the validation file is refused: line 2: ")
    assert told(client, job, "error")[0].startswith("validation_file: line 2: ")


def test_a_file_is_checked_before_there_is_a_job(client: openai.OpenAI) -> None:
    data = b"\n".join([*good(GOOD), json.dumps(asks(SMALL, "?")).encode(), b"{", b""])
    file = client.files.create(file=("rows.jsonl", data), purpose="fine-tune")
    found = client.post(
        f"/files/{file.id}/check", body={"rows": 13, "opsin": {"train_on": "all"}}, cast_to=dict[str, Any]
    )
    assert (found["file"], found["lines"], found["complete"], len(found["rows"])) == (file.id, 14, True, 13)
    assert found["refusal"].startswith("the training file is refused: line 14: not valid JSON")
    assert found["report"]["faults"][0]["line"] == 14
    assert any(run["picture"] for run in found["rows"][12]["runs"])
    other = client.files.create(file=("a.png", png(SMALL)), purpose="vision")
    for wrong, body, said in (
        (other.id, {}, "has the purpose 'vision'"),
        (file.id, {"rows": 51}, "rows"),
        (file.id, {"opsin": {"lora_rank": 0}}, "opsin.lora_rank"),
        (file.id, {"line": 1}, "line"),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            client.post(f"/files/{wrong}/check", body=body, cast_to=dict[str, Any])
    with pytest.raises(openai.NotFoundError):
        client.post("/files/file-none/check", body={}, cast_to=dict[str, Any])
