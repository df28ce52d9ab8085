"""How much of OpenAI's own tests of its SDK passes, as a table: reads the XML of a run of tests/sdk, writes
docs/benchmarks/openai-sdk.md.

    .venv/bin/pytest -m nightly tests/sdk --timeout 1800 -o junit_family=xunit1 --junitxml build/sdk.xml
    .venv/bin/python bench/sdk_shares.py build/sdk.xml
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

from tables import table

OUT = Path(__file__).resolve().parent.parent / "docs/benchmarks/openai-sdk.md"
ABOUT = """\
The SDK's own tests of the resources that Opsin has, unmodified, against a running server with opsin-mini, `--store`
and `--matryoshka` (`tests/sdk`; `make nightly` runs them and writes this page). Each of them runs with the
synchronous and the asynchronous client, with types that are checked loosely and strictly, and with aiohttp. Counted
are those that make a request. Where a test names a thing by its id, a copy of one that the server made itself lies
under that id; chats that are kept have but an assistant's messages before them, since the SDK's type knows no
others."""
MISSING = """\
What does not pass, each for a reason that is checked (`tests/sdk/exemptions.toml`: one that is listed and passes fails
the run). {all_parameters} of these {failed} are tests `*_with_all_params`, which send every field that there is at
once."""


def page(path: Path, day: datetime) -> str:
    root = ET.parse(path).getroot()

    def said(name: str) -> list[str]:
        return [one.get("value", "") for one in root.iter("property") if one.get("name") == name]

    shares = [
        (file, int(passed), int(asked), int(every)) for file, passed, asked, every in map(str.split, said("share"))
    ]
    rows = [[file, str(passed), str(asked), f"{passed / asked:.1%}"] for file, passed, asked, _ in shares]
    _, passed, asked, every = shares[-1]
    parts = [
        "# OpenAI's own tests of its SDK",
        f"{day:%Y-%m-%d}, {said('sdk')[0]}.",
        ABOUT,
        table(["tests/api_resources/", "passed", "of", "share"], rows),
        MISSING.format(all_parameters=every, failed=asked - passed),
        table(["tests", "why not"], [line.split(" ", 1) for line in said("listed")]),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    text = page(Path(sys.argv[1]), datetime.now(UTC))
    OUT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
