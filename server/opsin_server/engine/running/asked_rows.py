"""Which rows of a step are asked for beside those that draw a token: of prompts whose states are pooled, or whose
tokens' log probabilities are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opsin_server.engine.scheduling.plan import Chunk


def rows_pooled(chunk: Chunk) -> range:
    """Of a chunk's rows, those whose states are pooled."""
    pooling = chunk.sequence.pooling
    if pooling is None:
        return range(0)
    if pooling.kind == "last":
        return range(chunk.length - 1, chunk.length) if chunk.samples else range(0)
    if pooling.kind == "cls":
        return range(1) if chunk.start == 0 else range(0)
    return range(chunk.length)


def rows_scored(chunk: Chunk) -> range:
    """Of a chunk's rows, those that say how likely the prompt's next token is, unless that has been said before (of a
    sequence that was preempted)."""
    sequence = chunk.sequence
    if sequence.prompt_logprobs < 0:
        return range(0)
    first = max(chunk.start, sequence.scored)
    return range(first - chunk.start, min(chunk.stop, sequence.prompt_length - 1) - chunk.start)


@dataclass(frozen=True)
class AskedRows:
    """Of a batch in which something is pooled or scored. counts: rows asked for, of each chunk; rows: where they stand
    in the batch; drawn: which of them draw a token. pooled, scored: of each chunk that has any, which of them. pooling:
    all chunks of requests that are pooled."""

    counts: list[int]
    rows: list[int]
    drawn: list[int]
    pooled: list[tuple[Chunk, slice]]
    scored: list[tuple[Chunk, slice]]
    pooling: list[Chunk]


def asked_rows(chunks: Sequence[Chunk]) -> AskedRows | None:
    """None: nothing is pooled or scored."""
    pooling = [chunk for chunk in chunks if chunk.sequence.pooling is not None]
    if not pooling and not any(rows_scored(chunk) for chunk in chunks):
        return None
    found, start = AskedRows([], [], [], [], [], pooling), 0
    for chunk in chunks:
        at = len(found.rows)
        pooled, scored = rows_pooled(chunk), rows_scored(chunk)
        for parts, rows in ((found.pooled, pooled), (found.scored, scored)):
            if rows:
                parts.append((chunk, slice(at, at + len(rows))))
        found.rows.extend(start + row for row in (*pooled, *scored))
        if chunk.samples and chunk.sequence.pooling is None:
            found.drawn.append(len(found.rows))
            found.rows.append(start + chunk.length - 1)
        found.counts.append(len(found.rows) - at)
        start += chunk.length
    return found
