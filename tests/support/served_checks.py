"""What tests of whole servers expect again and again: that one works, that it ends in order, why it did not start."""

from __future__ import annotations

import signal

from support.served import Process, Served
from support.talk import MODEL_NAME, sample, user


def works(server: Served, **options) -> None:
    answer = server.client(**options).chat.completions.create(
        model=MODEL_NAME, messages=[user(sample("red_circle.png"), "What is in the picture?")], temperature=0
    )
    assert answer.choices[0].message.content == "A red circle."


def ends(server: Served) -> None:
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.room.left() == []


def sentence(process: Process) -> str:
    """What a server that does not start says: one line, and not how it came to it."""
    assert process.wait() == 1, process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("opsin: ")
    assert process.room.left() == []
    return lines[0]
