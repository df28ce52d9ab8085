"""A file prepared: rows and pixels as a chat's prompt has them, every fault by its line, and nothing half done."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opsin_server.api.answer.submit import to_prompt
from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.errors import BadRequest, OpsinError
from opsin_server.ipc.messages import describe
from opsin_server.jobs.image_store import ImageStore
from opsin_server.jobs.limits import DataLimits
from opsin_server.jobs.options import DataOptions, ImageOptions
from opsin_server.jobs.prepare import SAME, DataRefused, Source, prepare
from opsin_server.jobs.prepared import open_prepared
from opsin_server.media_limits import MediaLimits
from opsin_server.text.encode_prompt import PromptEncoder
from support import talk
from support.media_host import MediaHost, ok

FEW = DataOptions(min_rows=1)


@pytest.fixture
def source(encoder: PromptEncoder) -> Source:
    return Source(encoder, FEW, threads=2)


def row(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


def picture_row(picture: Callable[..., Image.Image], seed: int, **sizes: int) -> dict[str, Any]:
    return row(talk.user(picture(seed, **sizes), "what is it?"), talk.assistant(f"a circle, {seed}"))


def test_rows_and_pixels_are_those_of_a_chat(
    source: Source, write: Callable[..., Path], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    encoder = source.encoder
    rows = [
        row(talk.system("s"), talk.user("hello"), talk.assistant("a cat")),
        picture_row(picture, 1),
        row(
            talk.user(picture(2), "and", picture(1)),
            {**talk.assistant("first"), "weight": 0},
            talk.user(picture(3, width=64)),
            talk.assistant("then"),
        ),
    ]
    made = prepare(write(*rows), source, tmp_path / "out")
    assert len(made) == 3
    for index, given in enumerate(rows):
        before = [{k: v for k, v in m.items() if k != "weight"} for m in given["messages"][:-1]]
        asked = ChatRequest.model_validate({"model": "m", "messages": before})
        images = [np.asarray(one) for one in pictures_of(given)]
        prompt = encoder.encode(to_prompt(asked, source.image_tokens), images)
        found = made.row(index)
        assert found.ids[: len(prompt.ids)].tolist() == prompt.ids.tolist()
        assert np.array_equal(found.positions[:, : len(prompt.ids)], prompt.positions)
        assert (found.spans, found.items) == (prompt.spans, describe(prompt.items))
        answer = found.ids[found.labels].tolist()
        assert encoder.tokenizer.decode(answer) == given["messages"][-1]["content"]
        assert answer[-1] in encoder.ends
        for item in prompt.items:
            pixels = made.pixels(item.digest)
            assert np.array_equal(pixels.patches, item.pixels)
            assert pixels.arrange is None
        assert made.image_digests(index) == tuple(dict.fromkeys(item.digest for item in prompt.items))
        assert made.facts.tokens[index] == len(found.ids)
        assert made.facts.labels[index] == found.labels.sum()
        assert made.facts.visual_tokens[index] == sum(item.tokens for item in prompt.items)
    report = made.report
    assert (report.images, report.image_uses, report.image_rows) == (3, 4, 2)
    assert len(list((tmp_path / "out" / "images").rglob("*/*"))) == 3


def pictures_of(given: dict[str, Any]) -> list[Image.Image]:
    parts = [p for m in given["messages"] if isinstance(m["content"], list) for p in m["content"]]
    return [talk_picture(p["image_url"]["url"]) for p in parts if p["type"] == "image_url"]


def talk_picture(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_what_is_prepared_is_opened_again(
    source: Source, write: Callable[..., Path], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    file, out = write(*(picture_row(picture, n % 2) for n in range(5))), tmp_path / "out"
    made = prepare(file, source, out)
    stamp = (out / "rows.msgpack").stat().st_mtime_ns
    again = prepare(file, source, out)
    assert (out / "rows.msgpack").stat().st_mtime_ns == stamp
    opened = open_prepared(out, source.encoder)
    assert opened is not None
    for other in (again, opened):
        assert other.digest == made.digest
        assert other.report == made.report
        assert [other.row(n).ids.tolist() for n in range(5)] == [made.row(n).ids.tolist() for n in range(5)]
        assert all(np.array_equal(a, b) for a, b in zip(other.facts, made.facts, strict=True))
        assert np.array_equal(other.pixels(made.digests[1]).patches, made.pixels(made.digests[1]).patches)
    changed = [replace(source, version="other"), replace(source, options=DataOptions(min_rows=2))]
    file.write_bytes(file.read_bytes() + b"\n")
    digests = {prepare(file, other, tmp_path / f"out{n}").digest for n, other in enumerate([source, *changed])}
    assert len(digests | {made.digest}) == 4
    for index in (-1, 5):
        with pytest.raises(IndexError, match=f"row {index} of 5"):
            made.row(index)


def test_what_is_unfinished_is_prepared_anew(source: Source, write: Callable[..., Path], tmp_path: Path) -> None:
    file, out = write(row(talk.user("q"), talk.assistant("a"))), tmp_path / "out"
    prepare(file, source, out)
    (out / "manifest.json").write_text("{")
    assert open_prepared(out, source.encoder) is None
    assert len(prepare(file, source, out)) == 1


def test_a_stored_image_that_is_another_one_is_noticed(
    source: Source, write: Callable[..., Path], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    made = prepare(write(picture_row(picture, 1)), source, tmp_path / "out")
    (stored,) = (tmp_path / "out" / "images").rglob("*/*")
    stored.write_bytes(talk.png(picture(2)))
    with pytest.raises(OpsinError, match="gives"):
        made.pixels(made.digests[0])
    stored.unlink()
    with pytest.raises(OpsinError, match="cannot be read"):
        made.pixels(made.digests[0])


BAD = [
    (b'{"messages": 1', "not valid JSON"),
    (b'{"messages": [{"role": "user", "content": "q"}]}', r"messages[0]: the last message must be the assistant's"),
    (
        json.dumps(row(talk.user(b"no picture"), talk.assistant("a"))).encode(),
        "messages[0].content[0].image_url: The image",
    ),
    (json.dumps(row(talk.user("q"), {**talk.assistant("a"), "weight": 0})).encode(), "nothing to be learned"),
    (json.dumps(row(talk.user("q"), talk.assistant(" \n"))).encode(), "messages[1]: the assistant's text is empty"),
    (
        json.dumps(row(talk.user("q"), talk.assistant("a"), image="a.png")).encode(),
        'messages[0].content[0].image: "a.png" is a path',
    ),
]


@pytest.mark.parametrize("policy", ["refuse", "skip"])
def test_every_fault_has_its_line(policy: Any, source: Source, write: Callable[..., Path], tmp_path: Path) -> None:
    good = row(talk.user("q"), talk.assistant("a"))
    file = write(*(line for bad, _ in BAD for line in (good, bad)))
    source = replace(source, options=DataOptions(min_rows=1, on_bad_row=policy))
    if policy == "refuse":
        with pytest.raises(DataRefused, match=r"refused: line 2: not valid JSON.*and 5 more") as caught:
            prepare(file, source, tmp_path / "out")
        report = caught.value.report
        assert not (tmp_path / "out").exists()
    else:
        made = prepare(file, source, tmp_path / "out")
        report = made.report
        assert made.facts.line.tolist() == [1, 3, 5, 7, 9, 11]
    assert (report.rows, report.skipped, report.fault_count) == (6, 6, 6)
    for number, ((_, expected), fault) in enumerate(zip(BAD, report.faults, strict=True), 1):
        assert fault.line == 2 * number
        assert expected in fault.message


def test_faults_are_counted_past_those_that_are_kept(
    source: Source, write: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DataRefused) as caught:
        prepare(write(*[b"x"] * 250), source, tmp_path / "out")
    assert (caught.value.report.fault_count, len(caught.value.report.faults)) == (250, 100)
    good = row(talk.user("q"), talk.assistant("a"))
    options = DataOptions(min_rows=1, on_bad_row="skip")
    lenient = replace(source, options=options, limits=DataLimits(max_rows=1))
    with pytest.raises(DataRefused, match="refused: the file has more than 1 rows"):
        prepare(write(*[b"x"] * 250, good, good), lenient, tmp_path / "out")


@pytest.mark.parametrize("data", [b"[{}]", b"\xff\xfe{\0}\0"])
def test_files_that_are_no_json_lines(data: bytes, source: Source, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(data)
    for policy in ("refuse", "skip"):
        options = DataOptions(min_rows=1, on_bad_row=policy)
        with pytest.raises(DataRefused, match="the training file is refused: the file is"):
            prepare(tmp_path / "f", replace(source, options=options), tmp_path / "out")


def test_how_many_rows_are_needed(source: Source, write: Callable[..., Path], tmp_path: Path) -> None:
    rows = [row(talk.user("q"), talk.assistant(f"a{n}")) for n in range(9)]
    strict = replace(source, options=DataOptions())
    with pytest.raises(DataRefused, match="the training file has 9 rows to train on; at least 10 are needed"):
        prepare(write(*rows), strict, tmp_path / "out")
    with pytest.raises(DataRefused, match="the validation file has 9 rows to validate with; at least 10") as caught:
        prepare(write(*rows), replace(strict, role="validation"), tmp_path / "out")
    assert (caught.value.code, caught.value.param) == ("invalid_validation_file", "validation_file")
    long = row(talk.user("q"), talk.assistant("red circle " * 100))
    strict = replace(source, options=DataOptions(max_seq_length=64))
    with pytest.raises(DataRefused, match=r"has 9 rows to train on \(1 were too long\)"):
        prepare(write(*rows, long), strict, tmp_path / "out")
    assert len(prepare(write(*rows, rows[0]), strict, tmp_path / "out")) == 10


@pytest.mark.parametrize("policy", ["drop", "refuse", "truncate"])
def test_long_rows(policy: Any, source: Source, write: Callable[..., Path], tmp_path: Path) -> None:
    long, asks = talk.assistant("red circle " * 40), talk.user("what is it? " * 40)
    rows = [row(talk.user("q"), talk.assistant("a")), row(talk.user("q"), long), row(asks, talk.assistant("a"))]
    options = DataOptions(min_rows=1, max_seq_length=48, on_long_row=policy)
    source = replace(source, options=options)
    if policy == "refuse":
        with pytest.raises(DataRefused, match=r"line 2: the row has \d+ tokens; the limit is 48"):
            prepare(write(*rows), source, tmp_path / "out")
        return
    made = prepare(write(*rows), source, tmp_path / "out")
    if policy == "drop":
        assert (len(made), made.report.left_out, made.report.truncated) == (1, 2, 0)
        return
    assert (len(made), made.report.left_out, made.report.truncated) == (2, 1, 1)  # (one lost all of its labels)
    assert (len(made.row(1).ids), made.report.longest) == (48, 48)


def test_the_servers_limit_of_an_image_holds(
    source: Source, write: Callable[..., Path], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    """So that an image is trained on as it is served."""
    file = write(picture_row(picture, 1, width=96, height=96))
    made = prepare(file, replace(source, max_image_tokens=9), tmp_path / "out")
    assert [item.tokens for item in made.row(0).items] == [9]
    request = ChatRequest.model_validate({"model": "m", "messages": [talk.user(picture(1, 96, 96), "what is it?")]})
    prompt = source.encoder.encode(to_prompt(request, 9), [np.asarray(picture(1, 96, 96))])
    assert [item.digest for item in prompt.items] == [item.digest for item in made.row(0).items]
    assert made.digest != prepare(file, source, tmp_path / "other").digest


def test_what_is_told_of_a_line_may_end_the_work(source: Source, write: Callable[..., Path], tmp_path: Path) -> None:
    seen = []

    def stop(line: int) -> None:
        seen.append(line)
        if line == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(write(*[row(talk.user("q"), talk.assistant("a"))] * 100), source, tmp_path / "out", stop)
    assert seen == [1, 2, 3]
    assert open_prepared(tmp_path / "out", source.encoder) is None


def test_rows_that_a_loss_of_power_cut_off(source: Source, write: Callable[..., Path], tmp_path: Path) -> None:
    file, out = write(row(talk.user("q"), talk.assistant("a"))), tmp_path / "out"
    prepare(file, source, out)
    (out / "rows.msgpack").write_bytes((out / "rows.msgpack").read_bytes()[:-1])
    assert open_prepared(out, source.encoder) is None


def test_limits_of_a_file(
    source: Source, write: Callable[..., Path], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    file = write(*(picture_row(picture, n) for n in range(4)))
    for limits, said in (
        (DataLimits(max_rows=3), "more than 3 rows"),
        (DataLimits(max_image_rows=2), "more than 2 rows with images"),
        (DataLimits(max_line_bytes=100), "line 1: the line has more than 100 bytes"),
        (DataLimits(max_stored_bytes=9000), r"line \\d: .*more than 9,000 bytes together"),
    ):
        with pytest.raises(DataRefused, match=said.replace("\\\\", "\\")):
            prepare(file, replace(source, limits=limits), tmp_path / "out")


def test_train_on(source: Source, write: Callable[..., Path], tmp_path: Path) -> None:
    file = write(row(talk.user("q"), talk.assistant("one"), talk.user("q"), talk.assistant("two")))
    found = {}
    for choice in ("assistant", "last", "all"):
        options = DataOptions(min_rows=1, train_on=choice)
        found[choice] = prepare(file, replace(source, options=options), tmp_path / choice).row(0)
    texts = {name: source.encoder.tokenizer.decode(one.ids[one.labels].tolist()) for name, one in found.items()}
    assert (texts["assistant"], texts["last"]) == ("onetwo", "two")
    assert found["all"].labels.tolist() == [False] + [True] * (len(found["all"].ids) - 1)


def test_preferences(
    source: Source, write: Callable[..., Path], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    asked = talk.user(picture(1), "what is it?")
    pair = {
        "input": {"messages": [asked]},
        "preferred_output": [talk.assistant("a circle")],
        "non_preferred_output": [talk.assistant("a square")],
    }
    made = prepare(write(pair, pair), source, tmp_path / "out")
    preferred, other = made.pair(1)
    assert made.kind == "preference"
    decode = source.encoder.tokenizer.decode
    assert [decode(one.ids[one.labels].tolist()) for one in (preferred, other)] == ["a circle", "a square"]
    assert preferred.items == other.items
    assert made.image_digests(0) == (preferred.items[0].digest,)
    with pytest.raises(DataRefused, match="line 2: the row is a conversation, and those before are a preference"):
        prepare(write(pair, row(asked, talk.assistant("a"))), source, tmp_path / "other")


def test_of_a_preference_the_answer_is_learned_alone(
    source: Source, write: Callable[..., Path], tmp_path: Path
) -> None:
    pair = {"prompt": [talk.user("q"), talk.assistant("x"), talk.user("r")], "chosen": "yes", "rejected": "yes"}
    for choice in ("assistant", "last", "all"):
        options = DataOptions(min_rows=1, train_on=choice)
        made = prepare(write(pair), replace(source, options=options), tmp_path / choice)
        for one in made.pair(0):
            assert source.encoder.tokenizer.decode(one.ids[one.labels].tolist()) == "yes"
        assert [remark.message for remark in made.report.remarks] == [SAME]


def test_more_tokens_than_the_model_takes(source: Source, write: Callable[..., Path], tmp_path: Path) -> None:
    most = source.encoder.spec.max_positions
    source = replace(source, options=DataOptions(max_seq_length=most + 1))
    with pytest.raises(BadRequest, match=f"max_seq_length is {most + 1:,}, and the model takes {most:,} tokens"):
        prepare(write(row(talk.user("q"), talk.assistant("a"))), source, tmp_path / "out")


def test_images_behind_urls_are_fetched_once(
    source: Source, write: Callable[..., Path], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    host = MediaHost({"/a.png": ok(talk.png(picture(1))), "/b.png": ok(talk.png(picture(1)))})
    file = write(*(url_row(host.url(f"/{name}.png")) for name in "aabaabxx"))
    allowed = MediaLimits(allow=("127.0.0.1",))
    try:
        with pytest.raises(
            DataRefused, match=r"line 1: messages\[0\].content\[0\].image_url: .*(private|not allowed|refused)"
        ):
            prepare(file, source, tmp_path / "out")
        assert host.asked == []
        with pytest.raises(DataRefused) as caught:
            prepare(file, replace(source, media=allowed), tmp_path / "out")
        assert [fault.line for fault in caught.value.report.faults] == [7, 8]
        assert "status 404" in caught.value.report.faults[1].message
        assert sorted(host.asked) == ["/a.png", "/b.png", "/x.png"]
        skips = replace(source, media=allowed, options=DataOptions(min_rows=1, on_bad_row="skip"))
        made = prepare(file, skips, tmp_path / "out")
        assert (len(made), made.report.images) == (6, 1)
        asked = len(host.asked)
        assert made.pixels(made.digests[0]).patches.size
        assert len(host.asked) == asked
    finally:
        host.close()


def url_row(url: str) -> dict[str, Any]:
    return row({"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}, talk.assistant("a"))


def test_paths_are_read_below_a_folder_alone(
    source: Source, write: Callable[..., Path], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    base = tmp_path / "data"
    (base / "in").mkdir(parents=True)
    for path in (base / "in" / "a.png", tmp_path / "out.png"):
        path.write_bytes(talk.png(picture(1)))
    (base / "link.png").symlink_to(tmp_path / "out.png")
    (base / "inner.png").symlink_to(base / "in" / "a.png")
    good = ["in/a.png", "in/../in/a.png", str(base / "in" / "a.png"), "inner.png"]
    bad = [
        "../out.png",
        "link.png",
        str(tmp_path / "out.png"),
        "in",
        "none.png",
        "a\0b",
        "/etc/passwd",
        "file:///etc/passwd",
        "",
    ]
    names = [*good, *bad]
    file = write(*(row(talk.user("q"), talk.assistant("a"), image=name) for name in names))
    for folder, faults in ((None, len(names)), (base, len(bad))):
        with pytest.raises(DataRefused) as caught:
            prepare(file, replace(source, base=folder), tmp_path / "prepared")
        assert caught.value.report.fault_count == faults
        assert all("root:" not in fault.message for fault in caught.value.report.faults)


def test_how_many_images_a_row_may_have(
    source: Source, write: Callable[..., Path], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    file = write(row(talk.user(*(picture(n) for n in range(3)), "q"), talk.assistant("a")))
    with pytest.raises(DataRefused, match=r"content\[2\].image_url: the row has 3 images; the limit is 2"):
        prepare(file, replace(source, media=MediaLimits(max_images=2)), tmp_path / "out")
    with pytest.raises(DataRefused, match="pixels together"):
        prepare(file, replace(source, media=MediaLimits(max_request_pixels=3000)), tmp_path / "out")


def test_budgets_of_images(
    source: Source, write: Callable[..., Path], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    url = talk.data_url(picture(1, width=96, height=96))
    parts = [{"type": "image_url", "image_url": {"url": url, "max_pixels": 48 * 48}}, {"type": "image", "image": url}]
    file = write(row({"role": "user", "content": parts}, talk.assistant("a")))
    options = DataOptions(min_rows=1, images=ImageOptions(max_pixels=64 * 64))
    made = prepare(file, replace(source, options=options), tmp_path / "out")
    assert [item.grid for item in made.row(0).items] == [(1, 6, 6), (1, 8, 8)]
    assert len(list((tmp_path / "out" / "images").rglob("*/*"))) == 1
    assert [made.pixels(digest).patches.shape[0] for digest in made.digests] == [36, 64]


def test_threads_give_rows_in_the_files_order(source: Source, write: Callable[..., Path], tmp_path: Path) -> None:
    rng = random.Random()
    counts = [rng.randint(1, 60) for _ in range(120)]
    file = write(*(row(talk.user("q"), talk.assistant("circle " * n)) for n in counts))
    made = prepare(file, replace(source, threads=4), tmp_path / "out")
    alone = prepare(file, replace(source, threads=1), tmp_path / "alone")
    assert made.facts.line.tolist() == list(range(1, 121))
    assert all(np.array_equal(a, b) for a, b in zip(made.facts, alone.facts, strict=True))
    assert (tmp_path / "out" / "rows.msgpack").read_bytes() == (tmp_path / "alone" / "rows.msgpack").read_bytes()


def test_the_store_keeps_each_image_once(picture: Callable[..., Image.Image], tmp_path: Path) -> None:
    store = ImageStore(tmp_path, MediaLimits())
    data = talk.png(picture(5))
    assert store.keep(talk.data_url(data)) == store.keep(talk.data_url(data, "image/jpeg"))
    (path,) = tmp_path.rglob("*/*")
    assert path.read_bytes() == data
    for bad, said in ((b"<html>", "HTML"), (talk.png(picture(1, 200, 200)), "10,000")):
        with pytest.raises(BadRequest, match=said):
            ImageStore(tmp_path, MediaLimits(max_image_pixels=10_000)).keep(talk.data_url(bad))
    with pytest.raises(BadRequest, match="more than 5 bytes together"):
        ImageStore(tmp_path, MediaLimits(), most=5).keep(talk.data_url(picture(6)))
    assert len(list(tmp_path.rglob("*/*"))) == 1
