"""Hostile grammars: each is refused within a second by a sentence, the next one is checked as if nothing had been."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import replace

import pytest

from opsin_server.errors import BadRequest, Unavailable
from opsin_server.guided import check_process, remembered
from opsin_server.guided.check_messages import Found
from opsin_server.guided.check_process import GrammarChecker
from opsin_server.guided.grammar import Grammar, choice_grammar, ebnf_grammar, json_grammar, regex_grammar
from opsin_server.guided.remembered import Remembered
from support.hostile_grammars import hostile

MAKE = {"guided_json": json_grammar, "guided_regex": regex_grammar, "guided_grammar": ebnf_grammar}
GOOD = regex_grammar("[a-z]+", "good")
ENDLESS = json_grammar(
    {"allOf": [{"type": "string", "pattern": f"(.*[a-z]){{{i}}}.*[0-9]"} for i in range(2, 30)]}, "p"
)


@pytest.fixture(autouse=True)
def _a_busy_machine_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_process, "PATIENCE_SECONDS", 120.0)
    monkeypatch.setattr(check_process, "WAIT_SECONDS", 120.0)


async def settled() -> None:
    """What was begun waits for its turn, or for the process."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_every_hostile_grammar_is_refused_in_time() -> None:
    async def refused() -> int:
        checker, count = GrammarChecker(), 0
        await checker.check(GOOD)  # (the process has been started)
        try:
            for name, fields in hostile():
                ((field, given),) = fields.items()
                with pytest.raises(BadRequest) as caught:
                    await checker.check(MAKE[field](given, field))
                assert caught.value.param == field, name
                assert caught.value.code in ("invalid_value", "invalid_grammar"), name
                assert len(caught.value.message) < 600, name
                assert "/" + "home" not in caught.value.message
                count += 1
        finally:
            await checker.close()
        return count

    assert asyncio.run(refused()) >= 100


@pytest.mark.parametrize(
    ("grammar", "param"),
    [
        (json_grammar({}, "json", "((", (Grammar("start: /((/", "whitespace_pattern"),)), "whitespace_pattern"),
        (json_grammar({"not": {}}, "json", " ", (regex_grammar(" ", "whitespace_pattern"),)), "json"),
        (
            json_grammar({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}}, "large"),
            "large",
        ),
        (ebnf_grammar("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "grammar"), "grammar"),
    ],
    ids=["a part", "the whole", "too large", "brackets"],
)
def test_what_is_at_fault_is_named(grammar: Grammar, param: str) -> None:
    async def refused() -> BadRequest:
        checker = GrammarChecker()
        with pytest.raises(BadRequest) as caught:
            await checker.check(grammar)
        await checker.close()
        return caught.value

    error = asyncio.run(refused())
    assert (error.param, error.code) == (param, "invalid_grammar")
    assert error.message.startswith(f"Invalid value for '{param}': ")
    assert param != "large" or "it is too large" in error.message
    assert param != "grammar" or error.message.endswith("its brackets are nested too deeply")


def test_a_process_that_is_gone_is_started_again() -> None:
    async def checks() -> None:
        checker = GrammarChecker()
        await checker.check(GOOD)
        assert checker._process is not None
        first = checker._process.pid
        os.kill(first, signal.SIGKILL)
        while checker._process.returncode is None:
            await asyncio.sleep(0.01)
        assert await checker.check(choice_grammar(["b"], "p"))
        assert checker._process.pid != first
        await checker.close()
        assert checker._process is None

    asyncio.run(checks())


def test_a_process_that_is_held_up_or_ended_makes_no_grammar_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    async def checks() -> None:
        checker = GrammarChecker()
        for number, words, patience in (
            (signal.SIGSTOP, "too busy", 0.2),
            (signal.SIGKILL, "ended from outside", 120.0),
        ):
            monkeypatch.setattr(check_process, "PATIENCE_SECONDS", 120.0)
            await checker.check(GOOD)
            monkeypatch.setattr(check_process, "PATIENCE_SECONDS", patience)
            assert checker._process is not None
            os.kill(checker._process.pid, signal.SIGSTOP)
            asked = asyncio.create_task(checker.check(choice_grammar(["b"], "p")))
            await asyncio.sleep(0.1)
            os.kill(checker._process.pid, number)
            with pytest.raises(Unavailable, match=words):
                await asked
            checker._found = Remembered()
        assert await checker.check(choice_grammar(["b"], "p"))
        await checker.close()

    asyncio.run(checks())


def test_what_was_found_is_remembered_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST", 8)

    async def checks() -> None:
        checker = GrammarChecker()
        for number in range(20):
            await checker.check(choice_grammar([f"c{number}"], "p"))
        assert len(checker._found) == 8
        asked = []
        monkeypatch.setattr(checker, "_ask", lambda grammar: asked.append(grammar))
        await checker.check(choice_grammar(["c19"], "p"))
        assert not asked
        await checker.close()
        monkeypatch.setattr(remembered, "MOST_CHARACTERS", 100)
        checker._found.put(Grammar("b", "p", parts=(Grammar("c" * 60, "p"),)), Found("", "b" * 30))
        assert len(checker._found) == 1

    asyncio.run(checks())


@pytest.mark.parametrize(
    ("work", "words"),
    [("while True: pass", "more than 0.2 s to compile"), ("os.abort()", "too much memory to compile")],
    ids=["time", "memory"],
)
def test_a_refusal_for_its_own_work_is_remembered(monkeypatch: pytest.MonkeyPatch, work: str, words: str) -> None:
    monkeypatch.setattr(check_process, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(check_process, "WORKER", ("-c", f"import os\nprint(flush=True)\ninput()\n{work}"))

    async def checks() -> None:
        checker = GrammarChecker()
        for _ in range(2):
            with pytest.raises(BadRequest, match=words):
                await checker.check(GOOD)
            assert checker._process is None
            monkeypatch.setattr(check_process, "WORKER", ("-c", "it is not tried out again"))

    asyncio.run(checks())


def test_one_that_leaves_takes_no_other_ones_answer() -> None:
    async def checks() -> str:
        checker = GrammarChecker()
        await checker.check(GOOD)
        leaving = asyncio.create_task(checker.check(ENDLESS))
        await asyncio.sleep(0.1)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        found = await checker.check(choice_grammar(["after"], "p"))
        await checker.close()
        return found

    assert "after" in asyncio.run(checks())


def test_the_small_ones_do_not_wait_behind_the_large_ones_of_others() -> None:
    async def checks() -> list[str]:
        checker, ended = GrammarChecker(), []
        await checker.check(GOOD)

        async def one(grammar: Grammar, name: str) -> None:
            with suppress(BadRequest):
                await checker.check(grammar)
            ended.append(name)

        large = [replace(ENDLESS, text=ENDLESS.text + " " * number) for number in range(2)]
        tasks = [asyncio.create_task(one(grammar, "large")) for grammar in large]
        await settled()
        tasks += [asyncio.create_task(one(choice_grammar([f"s{n}"], "p"), "small")) for n in range(3)]
        await asyncio.gather(*tasks)
        await checker.close()
        return ended

    assert asyncio.run(checks()) == ["large", "small", "small", "small", "large"]


def test_nobody_waits_for_ever_behind_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_process, "WAIT_SECONDS", 0.05)

    async def checks() -> None:
        checker = GrammarChecker()
        await checker.check(GOOD)
        first = asyncio.create_task(checker.check(ENDLESS))
        await settled()
        with pytest.raises(Unavailable, match="being checked"):
            await checker.check(Grammar("start: /x/", "p"))
        assert not first.done(), "it was not waited for"
        with pytest.raises(BadRequest, match="more than 1 s"):
            await first
        assert Grammar("start: /x/", "p") not in checker._found
        await checker.close()

    asyncio.run(checks())
