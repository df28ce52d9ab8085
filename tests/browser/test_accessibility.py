"""The playground for everybody: what axe finds in each view, light and dark, and whether it fits a narrow window."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from support.served import Served
from support.talk import SAMPLES, assistant, user

pytestmark = pytest.mark.clients

AXE = Path(__file__).parents[1] / "real_clients/node_modules/axe-core/axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def violations(page: Page) -> list[str]:
    page.evaluate(AXE.read_text("utf-8"))
    found = page.evaluate("(tags) => axe.run({ runOnly: tags })", RULES)["violations"]
    return [f"{one['id']}: {node['html'][:200]} {node['failureSummary']}" for one in found for node in one["nodes"]]


def fill(page: Page) -> None:
    """Something in every view."""
    page.get_by_label("Compare side by side with").check()
    page.get_by_label("Answer as").select_option("schema")
    page.set_input_files("#choose", SAMPLES / "red_circle.png")
    page.get_by_label("Question", exact=True).fill("Describe the picture.")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".structured")).to_have_count(2)
    rows = [{"messages": [user("?"), assistant("yes" * 40)]} for _ in range(12)]
    data = "\n".join([*map(json.dumps, rows), "{"]).encode()
    page.get_by_role("link", name="Training data").click()
    page.set_input_files("#jsonl", {"name": "rows.jsonl", "mimeType": "application/jsonl", "buffer": data})
    expect(page.locator(".rows > li").first).to_be_visible()
    page.get_by_role("link", name="Jobs").click()
    page.get_by_role("button", name="New job").click()
    page.get_by_label("Training file").select_option(index=1)
    page.get_by_role("button", name="Create job").click()
    expect(page.locator("#job header .state")).to_have_text("failed")
    page.get_by_role("button", name="New job").click()


def test_every_view_in_light_and_dark_wide_and_narrow(page: Page, server: Served) -> None:
    fill(page)
    for width, height in ((1280, 800), (640, 400), (360, 740)):  # (640: 1280 at 200 %)
        page.set_viewport_size({"width": width, "height": height})
        for view in ("Chat", "Training data", "Jobs"):
            page.get_by_role("link", name=view).click()
            expect(page.get_by_role("heading", level=1)).to_be_attached()
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
                assert violations(page) == [], (view, theme, width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (view, width)


def test_the_dialog_and_the_empty_page(stranger: Page) -> None:
    expect(stranger.get_by_role("dialog")).to_be_visible()
    assert violations(stranger) == []
    stranger.keyboard.press("Escape")
    expect(stranger.get_by_role("dialog")).to_be_hidden()
    assert violations(stranger) == []
    stranger.get_by_role("link", name="Jobs").click()
    expect(stranger.get_by_role("heading", name="Fine-tuning jobs")).to_be_visible()
    expect(stranger.get_by_role("alert").filter(has_text="No API key was given")).to_be_visible()
    expect(stranger.get_by_role("dialog")).to_be_hidden()
    stranger.get_by_role("button", name="API key").click()
    expect(stranger.get_by_role("dialog")).to_contain_text("It is kept in this tab")


def test_the_theme_is_chosen_and_stays(page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    for _ in range(2):
        page.get_by_role("button", name="Theme: ").click()
    expect(page.get_by_role("button", name="Theme: Dark")).to_be_visible()
    assert page.evaluate(ground) != light
    page.reload()
    expect(page.get_by_role("button", name="Theme: Dark")).to_be_visible()
