"""What commands print is whole, whatever the terminal's width and whatever plugins are called."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from opsin_plugins.loading.registry import PluginStatus
from opsin_server import console as printed

LONG = "architecture 'glimpse' failed to load: ModuleNotFoundError: No module named 'glimpse_kernels' [/for] this"
ROWS = [
    PluginStatus("vision encoder", "qwen2_5_vl", "opsin", "0.1.0", None),
    PluginStatus("architecture", "glimpse", "opsin-glimpse", "1.0.0", LONG),
    PluginStatus("vision encoder", "dinov3_convnext.multi_scale", "opsin-plugin-for-dinov3", "2.13.0rc1", None),
    PluginStatus("fusion", "gated", "a-distribution-whose-name-is-far-too-long-for-any-column", "0.1", None),
]


class Installed:
    """A registry of the first rows."""

    def __init__(self, count: int) -> None:
        self._rows = ROWS[:count]

    def status(self) -> list[PluginStatus]:
        return self._rows


def show(monkeypatch: pytest.MonkeyPatch, count: int, width: int, *, terminal: bool) -> tuple[list[str], bool]:
    monkeypatch.setattr(printed, "Registry", lambda allow: Installed(count))
    console = Console(width=width, file=io.StringIO(), force_terminal=terminal, color_system=None)
    healthy = printed.show_plugins(console, None)
    return console.file.getvalue().splitlines(), healthy  # type: ignore[attr-defined]


@pytest.mark.parametrize(("count", "versions"), [(1, True), (2, True), (3, False), (4, False)])
def test_plugins_fit_eighty_columns_and_no_name_is_cut(
    monkeypatch: pytest.MonkeyPatch, count: int, versions: bool
) -> None:
    lines, healthy = show(monkeypatch, count, 80, terminal=True)
    assert healthy == (count == 1)
    assert max(map(len, lines)) <= 80
    words = " ".join(" ".join(lines).split())
    for row in ROWS[:count]:
        assert row.name in words
        assert row.distribution in words
    assert ("0.1.0" in words) == (versions or count == 4)  # (two lines have room for it)
    assert (LONG in words) == (count > 1)


def test_a_file_gets_a_line_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, _ = show(monkeypatch, 4, 80, terminal=False)
    assert f"    {LONG}" in lines
    assert [line.split()[-1] for line in lines if line != f"    {LONG}"] == ["status", "ok", "failed", "ok", "ok"]
    assert all(row.version in line for row, line in zip(ROWS[2:], lines[-2:], strict=True))


def test_a_machine_is_told_in_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    python = "/opt/" + "a-long-folder/" * 10 + "python"
    monkeypatch.setattr(printed.sys, "executable", python)
    said = "failed: OSError: " + "x" * 100
    monkeypatch.setattr(
        printed.subprocess,
        "run",
        lambda *_, **__: printed.subprocess.CompletedProcess((), 0, f'{{"torch": "{said}", "triton": "3.9"}}', ""),
    )
    rows, healthy = printed.doctor_rows()
    console = Console(width=80, file=io.StringIO())
    printed.show(console, rows)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert not healthy
    assert python in text
    assert said in text
