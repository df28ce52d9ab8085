"""What the commands print: tables on a terminal; lines with tabs between their columns where something else reads."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from opsin_client.adapters.api import Adapter, Alias, Version
from opsin_client.say import print_line
from opsin_client.table import show_table

NONE = "-"


def show_json(raw: Any) -> None:
    print_line(json.dumps(raw, indent=2, ensure_ascii=False))


def show_adapters(adapters: Sequence[Adapter]) -> None:
    head = ("name", "version", "tier", "rank", "targets", "size", "pinned", "last use")
    show_table(head, [_row(adapter) for adapter in adapters], numbers=("rank", "size"))


def _row(adapter: Adapter) -> tuple[str, ...]:
    current = adapter.current
    about = (NONE, NONE, NONE, NONE)
    if current is not None:
        about = (f"v{current.version}", str(current.rank), _parts(current.targets), _size(current.bytes))
    version, rank, targets, size = about
    tier = "cannot be served" if adapter.unservable else adapter.tier or NONE
    return (adapter.id, version, tier, rank, targets, size, _yes(adapter.pinned), _when(adapter.last_used_at))


def show_aliases(aliases: Sequence[Alias]) -> None:
    show_table(("alias", "target", "since"), [(a.id, a.target, _when(a.updated_at)) for a in aliases])


def show_adapter(adapter: Adapter) -> None:
    current = adapter.current
    rows = [
        ("current", NONE if current is None else f"v{current.version}"),
        ("tier", adapter.tier or NONE),
        ("pinned", _yes(adapter.pinned)),
        ("last use", _when(adapter.last_used_at)),
        ("aliases", ", ".join(adapter.aliases) or NONE),
    ]
    print_line(adapter.id)
    _rows(rows)
    if adapter.unservable:
        print_line(f"  {adapter.unservable}")
    for version in adapter.versions:
        print_line("")
        print_line(f"{version.id}{' (current)' if version.current else ''}")
        _rows(_about(version))


def _about(version: Version) -> list[tuple[str, str]]:
    rows = [
        ("digest", version.digest),
        ("rank", str(version.rank)),
        ("targets", ", ".join(version.targets)),
        ("size", _size(version.bytes)),
        ("loaded", f"{_when(version.created_at)}, {version.origin}"),
    ]
    if version.base_digest is not None:
        rows.append(("base", version.base_digest))
    if version.pixel_budget is not None:
        rows.append(("pictures", ", ".join(f"{name} {value:,}" for name, value in version.pixel_budget.items())))
    return [*rows, *(("note", warning) for warning in version.warnings)]


def _parts(targets: Sequence[str]) -> str:
    """Of language.attention, language.mlp and vision.mlp: language vision"""
    return " ".join(dict.fromkeys(target.partition(".")[0] for target in targets)) or NONE


def _rows(rows: Sequence[tuple[str, str]]) -> None:
    for name, value in rows:
        print_line(f"  {name:<9} {value}")


def _size(count: int) -> str:
    return f"{count / 2**10:.0f} KiB" if count < 2**20 else f"{count / 2**20:,.1f} MiB"


def _when(seconds: int | None) -> str:
    return "never" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _yes(value: bool) -> str:
    return "yes" if value else "no"
