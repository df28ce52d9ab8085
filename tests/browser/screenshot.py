"""The picture of docs/playground.md, after `make setup-clients`:

PYTHONPATH=tests .venv/bin/python tests/browser/screenshot.py docs/playground.png
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from support.served import Served
from support.talk import SAMPLES

ADAPTERS = Path(__file__).parents[2] / "examples/adapters"


def take(page: Page, url: str, out: str) -> None:
    """Two adapters of examples/adapters beside each other."""
    page.goto(f"{url}/playground")
    page.wait_for_selector("#model option", state="attached")
    page.select_option("#model", "german")
    page.check("#compare")
    page.select_option("#other", "fields")
    page.set_input_files("#choose", SAMPLES / "square_and_star.png")
    page.fill("#question", "What is in the picture?")
    page.click("#send")
    page.wait_for_selector("#thread[aria-busy=false]")
    page.locator("#question").blur()
    page.screenshot(path=out)


def main(out: str) -> None:
    named = [part for name in ("german", "fields") for part in ("--adapter", f"{name}={ADAPTERS / name}")]
    with Served(*named) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1120, "height": 620}, color_scheme="light")
        take(page, server.url, out)
        browser.close()
        server.close()


if __name__ == "__main__":
    main(sys.argv[1])
