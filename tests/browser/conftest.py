"""The playground in Chromium, on one server a module that has a key and stands behind a proxy's prefix."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from support.served import Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

KEY = "sk-of-the-browser-<b>"
ARGUMENTS = (
    "--no-sandbox", "--headless", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PREFIX = "/llm"
SECONDS = 60  # on a machine that is busy with other things
FAILED = "Failed to load resource"  # what Chromium itself says of an answer that is an error


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Other targets run without what `make test-clients` installs."""
    return True if find_spec("playwright") is None and config.getoption("markexpr") != "clients" else None


@pytest.fixture(scope="session")
def key() -> str:
    return KEY


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    names = ("--served-model-name", "opsin-mini", "--served-model-name", "second")
    with Served("--api-key", KEY, "--root-path", PREFIX, *names) as served:
        yield served
        served.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=SECONDS * 1000)
    path = shutil.which("chromium")
    assert path is not None, "make test-clients installs chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    made = chromium.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    made.set_default_timeout(SECONDS * 1000)
    yield made
    made.close()


@pytest.fixture
def stranger(server: Served, context: BrowserContext) -> Iterator[Page]:
    """Somebody without a key. Whatever a test does, nothing is asked of anyone else, and nothing goes wrong unseen."""
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    page.on(
        "console",
        lambda said: (
            wrong.append(said.text) if said.type in ("error", "warning") and not said.text.startswith(FAILED) else None
        ),
    )
    page.on("request", lambda asked: wrong.append(asked.url) if not is_own(asked.url, server) else None)
    page.goto(f"{server.url}{PREFIX}/playground")
    yield page
    assert not wrong


@pytest.fixture
def page(stranger: Page) -> Page:
    """Somebody with the key, whose page is ready."""
    stranger.get_by_label("Key", exact=True).fill(KEY)
    stranger.get_by_role("button", name="Use this key").click()
    stranger.wait_for_selector("#model option", state="attached")
    return stranger


def is_own(url: str, server: Served) -> bool:
    return url.startswith((server.url + PREFIX, "data:", f"blob:{server.url}"))
