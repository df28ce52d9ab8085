"""Grammars tried out by a process of its own (`check_worker`), which ends with the server: what would hold up, fill or
crash an engine is one request's fault."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import re
import sys

from opsin_server.child_work import FROM_OUTSIDE, says_work, within_work
from opsin_server.errors import BadRequest, OpsinError, Unavailable
from opsin_server.guided.check_messages import Asked, Found, found_of, line_of
from opsin_server.guided.grammar import Grammar
from opsin_server.guided.remembered import Remembered

WORKER = ("-m", "opsin_server.guided.check_worker")
CHECK_SECONDS = 1.0  # of work
PATIENCE_SECONDS = 10.0  # for that work, on a machine that has others
BUSY = "This machine is too busy to check the grammar. Try again"
START_SECONDS = 30.0
WAIT_SECONDS = 10.0  # behind others
TOO_MUCH = "it takes"  # a fault that its parts would have to take as long for
MAX_LINE = 2**21  # bytes of an answer, which repeats the grammar


class Turns:
    """A lock whose smallest waiter comes first, so that nobody waits behind the large grammars of others."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0

    async def acquire(self, size: int) -> None:
        if not self._taken:
            self._taken = True
            return
        mine = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._waiting, (size, self._count, mine))
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # it had its turn in the same moment
                self.release()
            raise

    def release(self) -> None:
        while self._waiting:
            _, _, other = heapq.heappop(self._waiting)
            if not other.done():
                other.set_result(None)
                return
        self._taken = False


class GrammarChecker:
    """Starts the process when it is first asked, and again after a grammar was its end."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = Turns()
        self._found = Remembered()

    async def check(self, grammar: Grammar) -> str:
        """The grammar in llguidance's form. Raises BadRequest for one that is wrong, empty or too much work."""
        found = self._found.get(grammar)
        if found is None:
            found = await self._asked(grammar)
            if says_work() or not found.fault.startswith(TOO_MUCH):  # (else the machine may have been busy)
                self._found.put(grammar, found)
        if found.fault:
            for part in () if found.fault.startswith(TOO_MUCH) else grammar.parts:
                await self.check(part)
            raise BadRequest(_sentence(found.fault, grammar.param), param=grammar.param, code="invalid_grammar")
        return found.text

    async def close(self) -> None:
        if self._process is not None:
            await self._end()

    async def _asked(self, grammar: Grammar) -> Found:
        try:
            await asyncio.wait_for(self._turn.acquire(len(grammar.text)), WAIT_SECONDS)
        except TimeoutError:
            raise Unavailable("The grammars of too many requests are being checked. Try again") from None
        try:
            if found := self._found.get(grammar):  # another request asked the same meanwhile
                return found
            return await self._ask(grammar)
        finally:
            self._turn.release()

    async def _ask(self, grammar: Grammar) -> Found:
        if self._process is not None and self._process.returncode is not None:
            await self._end()  # it was killed by somebody, while it had nothing to do
        process = await self._running()
        done, asked = False, Asked(grammar.text, grammar.gbnf, grammar.other)
        try:
            answer = _answer(process, line_of(asked) + b"\n")
            line = await within_work(answer, process.pid, CHECK_SECONDS, PATIENCE_SECONDS, BUSY)
            done = bool(line)
        except TimeoutError:
            return Found(f"{TOO_MUCH} more than {CHECK_SECONDS:g} s to compile", grammar.text)
        finally:  # also where this request was cancelled: what comes now would be the next one's answer
            if not done:
                await self._end()
        if line:
            return found_of(line)
        if process.returncode in FROM_OUTSIDE:
            raise Unavailable("What checks grammars was ended from outside. Try again")
        return Found(f"{TOO_MUCH} too much memory to compile", grammar.text)

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *WORKER, stdin=pipe, stdout=pipe, limit=MAX_LINE, start_new_session=True
            )
            assert self._process.stdout is not None
            ready = False
            try:
                async with asyncio.timeout(START_SECONDS):
                    ready = bool(await self._process.stdout.readline())
            except TimeoutError:
                pass
            finally:
                if not ready:
                    await self._end()
            if not ready:
                raise OpsinError("the process that checks grammars does not start")
        assert self._process is not None
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        with contextlib.suppress(ProcessLookupError, RuntimeError):  # (uvloop raises the second)
            process.kill()
        await process.wait()


async def _answer(process: asyncio.subprocess.Process, asked: bytes) -> bytes:
    """A line; nothing where the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError, RuntimeError):  # (uvloop raises the second)
        process.stdin.write(asked)
        await process.stdin.drain()
        if line := await process.stdout.readline():
            return line
    with contextlib.suppress(TimeoutError):  # (killing it would hide how it ended)
        async with asyncio.timeout(CHECK_SECONDS):
            await process.wait()
    return b""


PLACE = re.compile(r"^at \d+\(\d+\): ")  # in the grammar that was made of a schema
MOST_WORDS = 200  # characters
EMPTY = "NoExtension"  # in llguidance's words: nothing may follow, and nothing has been said


def _sentence(fault: str, param: str) -> str:
    """The library's words without its picture of where: the first line, and what stands behind "error:" in another."""
    lines = [PLACE.sub("", line.strip()) for line in fault.replace("<non-verbose/>", "").splitlines()]
    said = next((line for line in lines if line), EMPTY)
    why = next((line.removeprefix("error:").strip() for line in lines if line.startswith("error:")), "")
    if "oneOf" in said:
        said = "the branches of a 'oneOf' may overlap; send 'anyOf'"
    if "items; limit is" in said or "Current row has" in said:
        return f"Invalid value for '{param}': it is too large to hold an answer to: too much may follow in one place"
    if said.startswith(EMPTY):
        return f"Invalid value for '{param}': no answer fits it"
    what = f"{shortened(said).rstrip(':')}{': ' if why else ''}{shortened(why)}"
    return f"Invalid value for '{param}': no answer can be held to it: {what}"


def shortened(words: str) -> str:
    return words if len(words) <= MOST_WORDS else words[:MOST_WORDS] + "..."
