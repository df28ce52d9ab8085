"""Rows that are cut at the right to a number of tokens: never through an image."""

from __future__ import annotations

from dataclasses import replace

from opsin_server.ipc.training_rows import TrainingRow


def truncated(row: TrainingRow, tokens: int) -> TrainingRow:
    """The first `tokens` of a row, or fewer where an image would be cut in two: then it is left out whole. What is left
    may hold no label."""
    if len(row.ids) <= tokens:
        return row
    cut = next((span.start for span in row.spans if span.start < tokens < span.start + span.length), tokens)
    spans = tuple(span for span in row.spans if span.start < cut)
    kept = 1 + max((span.item for span in spans), default=-1)
    visible = tuple(
        replace(run, lo=min(run.lo, kept), hi=min(run.hi, kept)) for run in row.visible if kept and run.start < cut
    )
    return TrainingRow(
        row.ids[:cut].copy(), row.positions[:, :cut].copy(), row.labels[:cut].copy(), spans, row.items[:kept], visible
    )
