"""How a command that speaks to a server ends."""

from __future__ import annotations

import pytest
import typer

from opsin_client.sentences import INTERRUPTED, sentences


def test_someone_who_stops_a_command_hears_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, sentences("opsin migrate", "there", stopped="stopped; run it again"):
        raise KeyboardInterrupt
    assert ended.value.exit_code == INTERRUPTED
    assert "opsin migrate: stopped; run it again" in "".join(capsys.readouterr())
