"""What `opsin migrate create` plans, and what `compare` finds, between servers of known answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from opsin_client.migrate.answers import Compared, Totals
from opsin_client.migrate.create import check_model
from opsin_client.migrate.folder import SnapshotFolder
from opsin_client.migrate.plan import MIGRATED_FROM, body_of, lines_with_pictures, plan
from opsin_client.migrate.problems import MigrateError
from opsin_client.migrate.rows import Row, picture_urls, question_of
from opsin_server.cli import app
from support.fake_source import FakeSource, Handler, fake_source
from support.media_host import MediaHost

EVIL = "<script>alert(1)</script><img src=http://127.0.0.1/x onerror=x>\x1b[31m"
# Of each line: what its row says, what the old model said, and what the new one says.
CASES = [
    ("red", "red", "red"),
    ("red", "Red ", "blue"),  # only the old one is right
    ("blue", "red", "blue"),  # only the new one is
    ("green", "blue", "blue"),  # neither, but they agree
    ("green", EVIL, "yellow"),
]


@pytest.fixture
def old(account: FakeSource) -> FakeSource:
    return account


@pytest.fixture
def new() -> Iterator[FakeSource]:
    with fake_source() as found:
        yield found


def data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def row(text: str, answer: str, *urls: str) -> dict[str, Any]:
    asked: list[dict[str, Any]] = [{"type": "text", "text": text}]
    asked += [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def answering(account: FakeSource, answers: list[str]) -> None:
    left = iter(answers)

    def say(handler: Handler) -> None:
        handler.send(200, json.dumps({"choices": [{"message": {"role": "assistant", "content": next(left)}}]}).encode())

    account.answers["chat/completions"] = say


def run(server: FakeSource, *words: str) -> Result:
    environment = {"COLUMNS": "300", "NO_COLOR": "1", "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "key"}
    return CliRunner().invoke(app, ["migrate", *words], env=environment)


def saved(old: FakeSource, host: MediaHost, folder: Path) -> None:
    rows = [
        row(f"{EVIL} {n}", case[0], *([host.url("/a.png"), "javascript:alert(1)"] if n == 0 else []))
        for n, case in enumerate(CASES)
    ]
    old.add_job("ftjob-a", rows)
    answering(old, [case[1] for case in CASES])
    taken = run(old, "snapshot", "--out", str(folder), "--from", old.url, "--allow-host", "127.0.0.1")
    assert taken.exit_code == 0, taken.output


class Tags(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_known_difference_is_said(
    old: FakeSource, new: FakeSource, host: MediaHost, png: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    saved(old, host, folder)
    new.add_job("ftjob-new", [], metadata={"migrated_from": "ftjob-a"}, fine_tuned_model="ft:here")
    answering(new, [case[2] for case in CASES])
    done = run(new, "compare", str(folder))
    assert done.exit_code == 0, done.output
    lines = [line.split("\t") for line in done.output.splitlines() if line.startswith("line ")]
    assert [line[0] for line in lines] == [f"line {n}" for n in range(1, 6)]
    assert "ftjob-a: ft:gpt-4o-2024-08-06:acme::ftjob-a -> ft:here\n" in done.output
    assert [(line[2].split()[1], line[3].split()[1]) for line in lines] == [
        ("=", "="), ("=", "x"), ("x", "="), ("x", "x"), ("x", "x"),
    ]  # fmt: skip
    for said in (
        "questions          5",
        "not answered       0",
        "old is right       2 (40.0%)",
        "new is right       2 (40.0%)",
        "only old is right  1 (20.0%)",
        "only new is right  1 (20.0%)",
        "both say the same  2 (40.0%)",
    ):
        assert f"  {said}\n" in done.output
    assert "\x1b" not in done.output
    page = (folder / "comparison.html").read_text()
    seen = Tags()
    seen.feed(page)
    tags = [tag for tag, _ in seen.found]
    assert "script" not in tags
    pictures = [attributes for tag, attributes in seen.found if tag == "img"]
    assert [one["src"] for one in pictures] == [data_url(png)]
    assert all("onerror" not in one for one in pictures)
    assert "(a picture that was not saved)" in page
    assert "alert(1)" in page  # as text
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_a_question_that_fails_is_not_a_wrong_answer(
    old: FakeSource, new: FakeSource, host: MediaHost, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    saved(old, host, folder)
    new.answers["models"] = [{"id": "m"}]
    answers = iter(["red", None, None, "blue", "yellow"])

    def say(handler: Handler) -> None:
        answer = next(answers)
        if answer is None:
            handler.send(500, json.dumps({"error": {"message": "<b>broken"}}).encode())
        else:
            handler.send(200, json.dumps({"choices": [{"message": {"content": answer}}]}).encode())

    new.answers["chat/completions"] = say
    done = run(new, "compare", str(folder), "--model", "m")
    assert done.exit_code == 1
    for said in (
        "questions          5",
        "not answered       2",
        "old is right       1 (33.3%)",
        "new is right       1 (33.3%)",
        "only old is right  0 (0.0%)",
    ):
        assert f"  {said}\n" in done.output
    assert done.output.count("new - (not answered)") == 2
    assert "2 questions were not answered" in done.output
    assert "(not answered: &lt;b&gt;broken)" in (folder / "comparison.html").read_text()


def test_a_page_that_cannot_be_written_is_told_before_anything_is_asked(
    old: FakeSource, new: FakeSource, host: MediaHost, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    saved(old, host, folder)
    for out in (tmp_path, tmp_path / "none" / "page.html"):
        done = run(new, "compare", str(folder), "--model", "m", "--out", str(out))
        assert done.exit_code == 1
        assert "--out must name a file" in done.output
    assert new.log == []


@pytest.mark.parametrize("damage", [b"no JSON\n", b"[]\n", b"{}\n", b'{"line": "1", "file": "file-a"}\n', b"\xff\n"])
def test_damaged_answers_are_a_sentence(
    old: FakeSource, new: FakeSource, host: MediaHost, tmp_path: Path, damage: bytes
) -> None:
    folder = tmp_path / "s"
    saved(old, host, folder)
    (folder / "jobs" / "ftjob-a" / "answers.jsonl").write_bytes(damage)
    done = run(new, "compare", str(folder), "--model", "m")
    again = run(old, "snapshot", "--out", str(folder), "--from", old.url)
    for one in (done, again):
        assert one.exit_code == 1
        assert "answers.jsonl is damaged: delete it" in one.output.replace("\n", "")


def test_a_damaged_mark_can_be_mended_as_it_says(old: FakeSource, host: MediaHost, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    saved(old, host, folder)
    (folder / "source.json").write_text("{")
    words = ["snapshot", "--out", str(folder), "--from", old.url, "--questions", "0", "--no-pictures"]
    broken = run(old, *words)
    assert broken.exit_code == 1
    mended = broken.output.partition("it must hold ")[2].partition(", the URL")[0]
    (folder / "source.json").write_text(mended.replace("URL", old.url))
    assert run(old, *words).exit_code == 0


def test_nothing_to_compare_is_a_sentence(old: FakeSource, new: FakeSource, host: MediaHost, tmp_path: Path) -> None:
    saved(old, host, tmp_path / "s")
    new.answers["fine_tuning/jobs"] = []
    done = run(new, "compare", str(tmp_path / "s"))
    assert done.exit_code == 1
    assert "there is nothing to compare" in done.output
    new.answers["fine_tuning/jobs"] = [{"id": "ftjob-n", "status": "running", "metadata": {MIGRATED_FROM: "ftjob-a"}}]
    early = run(new, "compare", str(tmp_path / "s"))
    assert "ftjob-a: ftjob-n is running" in early.output
    nowhere = run(new, "compare", str(tmp_path))
    assert "holds no snapshot" in nowhere.output


def planned(folder: Path) -> Any:
    return {one.id: one for one in plan(SnapshotFolder(folder, 2**40))}


def test_a_plan_says_what_cannot_be_made(old: FakeSource, host: MediaHost, png: bytes, tmp_path: Path) -> None:
    old.add_job("ftjob-tools", [{**row("x", "y"), "tools": [{"type": "function"}]}])
    old.add_job("ftjob-rl", [row("x", "y")], method={"type": "reinforcement"})
    old.add_job("ftjob-gone", [row("x", "y")])
    del old.answers["files/file-ftjob-gone/content"]
    old.add_job("ftjob-bad", [])
    old.answers["files/file-ftjob-bad/content"] = b'{"messages": []}\nno row\n'
    old.add_job("ftjob-failed", [row("x", "y")], status="failed")
    old.add_job("ftjob-good", [row("x", "y", host.url("/a.png"), host.url("/none.png"))])
    taken = run(old, "snapshot", "--out", str(tmp_path / "s"), "--from", old.url, "--allow-host", "127.0.0.1")
    assert taken.exit_code == 0, taken.output
    found = planned(tmp_path / "s")
    assert {name: one.why_not for name, one in found.items()} == {
        "ftjob-tools": "1 rows have tools, which are not trained",
        "ftjob-rl": "reinforcement fine-tuning is not there",
        "ftjob-gone": "its training file could not be saved",
        "ftjob-bad": "1 lines are no JSON objects",
        "ftjob-good": "",
    }
    old.answers["models"] = [{"id": "base"}]
    dry = run(old, "create", str(tmp_path / "s"))
    assert "1 of the snapshot's jobs did not succeed and are left out" in dry.output
    wrong = run(old, "create", str(tmp_path / "s"), "--model", "nope", "--run")
    assert (wrong.exit_code, "the server has no model nope; it has base" in wrong.output) == (1, True)
    assert not any(line.startswith("POST files") for line in old.log)
    assert "yes, but 1 pictures are missing: its rows may be refused" in dry.output
    known = {"zebra", *(f"ft:{n}" for n in range(9))}
    with pytest.raises(MigrateError, match=r"no model nope; it has zebra, ft:0, .*, ft:6 and 2 more"):
        check_model("nope", known)
    facts = found["ftjob-good"].training
    assert (facts.rows, facts.pictures, facts.lost_pictures) == (1, 2, 1)
    (line,) = lines_with_pictures(SnapshotFolder(tmp_path / "s", 2**40), "file-ftjob-good")
    images = [part["image_url"] for part in json.loads(line)["messages"][0]["content"][1:]]
    assert images == [{"url": data_url(png), "detail": "low"}, {"url": host.url("/none.png"), "detail": "low"}]


def test_a_model_that_was_trained_on_from_is_made_first(old: FakeSource, new: FakeSource, tmp_path: Path) -> None:
    old.add_job("ftjob-a", [row("x", "y")])
    parent = "ft:gpt-4o-2024-08-06:acme::ftjob-a"
    old.add_job("ftjob-b", [row("x", "z")], model=parent)
    run(old, "snapshot", "--out", str(tmp_path / "s"), "--from", old.url, "--questions", "0")
    one = planned(tmp_path / "s")["ftjob-b"]
    assert body_of(one, "base", {"file-ftjob-b": "f"}, same_hyperparameters=False)["model"] == parent
    new.answers |= {"fine_tuning/jobs": [], "models": [{"id": "base"}], "aliases": {"ok": True}}
    new.answers["files"] = {"id": "file-new", "object": "file"}
    asked: list[str] = []

    def create(handler: Handler) -> None:
        asked.append(handler.command)
        if handler.command == "POST":
            handler.send(200, json.dumps({"id": "ftjob-new"}).encode())
        else:
            handler.send(200, b'{"data": [], "has_more": false}')

    new.answers["fine_tuning/jobs"] = create
    dry = run(new, "create", str(tmp_path / "s"))
    assert "1 jobs would be made" in dry.output
    assert asked.count("POST") == 0
    done = run(new, "create", str(tmp_path / "s"), "--run", "--alias-base")
    assert done.exit_code == 0, done.output
    assert asked.count("POST") == 1
    assert f"later: it was trained on from {parent}" in done.output
    assert "gpt-4o-2024-08-06 means this server's model" in done.output
    assert f"{parent} means" not in done.output


def test_a_wrong_address_leaves_nothing(old: FakeSource, tmp_path: Path) -> None:
    wrong = run(old, "snapshot", "--out", str(tmp_path / "s"), "--from", old.url + "/nope", "--key-env", "NO_SUCH_KEY")
    assert wrong.exit_code == 1
    assert "NO_SUCH_KEY is not set" in wrong.output
    assert not (tmp_path / "s").exists()


def test_a_job_is_asked_for_as_it_was(old: FakeSource, tmp_path: Path) -> None:
    given = {"n_epochs": 4, "batch_size": 2, "learning_rate_multiplier": 1.8, "beta": 0.2}
    old.add_job(
        "ftjob-a",
        [row("x", "y")],
        user_provided_suffix="mine",
        seed=5,
        metadata={f"k{n}": "v" for n in range(16)},
        method={"type": "dpo", "dpo": {"hyperparameters": given}},
    )
    run(old, "snapshot", "--out", str(tmp_path / "s"), "--from", old.url)
    one = planned(tmp_path / "s")["ftjob-a"]
    body = body_of(one, "base", {"file-ftjob-a": "file-new"}, same_hyperparameters=True)
    assert len(body["metadata"]) == 16
    assert body["metadata"]["migrated_from"] == "ftjob-a"
    del body["metadata"]
    assert body == {
        "model": "base",
        "training_file": "file-new",
        "suffix": "mine",
        "seed": 5,
        "method": {"type": "dpo", "dpo": {"hyperparameters": given}},
        "opsin": {"publish_as": "ft:gpt-4o-2024-08-06:acme::ftjob-a"},
    }
    auto = body_of(one, "base", {"file-ftjob-a": "file-new"}, same_hyperparameters=False)
    assert auto["method"] == {"type": "dpo", "dpo": {"hyperparameters": {}}}


def test_questions_of_every_form() -> None:
    told = question_of(Row(3, row("what?", "that")))
    assert told is not None
    assert (told.line, told.reference, [message["role"] for message in told.messages]) == (3, "that", ["user"])
    system = {"role": "system", "content": "be brief"}
    turns = [system, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    turns += [{"role": "user", "content": "c"}, {"role": "assistant", "content": [{"type": "text", "text": "d"}]}]
    last = question_of(Row(1, {"messages": turns}))
    assert last is not None
    assert last.reference == "d"
    assert last.messages == [system, turns[1], {"role": "assistant", "content": "b"}, turns[3]]
    preferred = {"input": {"messages": turns[:2]}, "preferred_output": [{"role": "assistant", "content": "e"}]}
    better = question_of(Row(1, preferred))
    assert better is not None
    assert (better.reference, better.messages) == ("e", turns[:2])
    for nothing in (None, {}, {"messages": 3}, {"messages": [1]}, {"messages": turns[:2]}, {"preferred_output": []}):
        assert question_of(Row(1, nothing)) is None  # type: ignore[arg-type]
    assert picture_urls(Row(1, {"messages": [{"content": [{"image_url": "http://a/"}, {"image_url": 3}, 4]}, 5]})) == [
        "http://a/"
    ]


def test_totals_of_nothing() -> None:
    assert Totals.of([]).rows()[0] == ("questions", "0")
    one = Compared(1, [], "a", None, "a", seen=False)
    assert (one.old_right, one.new_right, one.same, one.alike) == (False, True, False, 0.0)
