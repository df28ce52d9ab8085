"""Chats in the playground, as somebody with a mouse, somebody with a keyboard and somebody hostile has them."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from support import videos
from support.served import Served
from support.talk import SAMPLES

pytestmark = pytest.mark.clients

PICTURE = SAMPLES / "square_and_star.png"
DESCRIBED = "A blue square and an orange star."
HOSTILE = "<img src=x onerror=\"alert('x')\"><script>alert(1)</script>"
GIVE = """([event, data, name, target]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const given = new DataTransfer();
  given.items.add(new File([bytes], name, { type: 'image/png' }));
  const known = { bubbles: true, cancelable: true };
  document.querySelector(target).dispatchEvent(event === 'paste'
    ? new ClipboardEvent('paste', { ...known, clipboardData: given })
    : new DragEvent(event, { ...known, dataTransfer: given }));
}"""


def give(page: Page, event: str, name: str = PICTURE.name) -> None:
    page.evaluate(GIVE, [event, base64.b64encode(PICTURE.read_bytes()).decode(), name, "#question"])


def send(page: Page, text: str) -> None:
    page.get_by_label("Question", exact=True).fill(text)
    page.get_by_role("button", name="Send").click()


def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}]})}\n\n"


def says(page: Page, *events: str) -> None:
    """What every question is answered with from now on."""
    body = "".join((*events, "data: [DONE]\n\n"))
    page.route("**/chat/completions", lambda asked: asked.fulfill(body=body, content_type="text/event-stream"))


def test_a_picture_is_dropped_and_asked_about(page: Page) -> None:
    give(page, "drop")
    expect(page.get_by_role("img", name=PICTURE.name)).to_be_visible()
    send(page, "Describe the picture.")
    answer = page.get_by_role("article", name="Answer of opsin-mini").last
    expect(answer.locator(".said")).to_have_text(DESCRIBED)
    expect(answer.locator(".facts")).to_contain_text(re.compile(r"\d ms to the first token.*prompt \d+.*answer 8"))
    expect(page.get_by_role("status").filter(has_text=DESCRIBED)).to_have_count(1)
    send(page, "What is on the left?")
    again = page.get_by_role("article", name="Answer of opsin-mini").last
    expect(again.locator(".said")).to_have_text("A blue square.")
    expect(again.locator(".facts")).to_contain_text("cached)")
    page.get_by_label("Send what was said before").uncheck()
    with page.expect_request("**/chat/completions") as asked:
        send(page, "hi")
    assert [message["content"] for message in asked.value.post_data_json["messages"]] == ["hi"]
    expect(page.get_by_role("article", name="Answer of opsin-mini").last.locator(".facts")).not_to_be_empty()


def test_pictures_are_pasted_chosen_and_taken_away(page: Page) -> None:
    give(page, "paste")
    page.set_input_files("#choose", [SAMPLES / "cat.png", SAMPLES / "rocket.png"])
    tray = page.get_by_role("list", name="Pictures of this question")
    expect(tray.get_by_role("img")).to_have_count(3)
    tray.get_by_role("button", name="Remove cat.png").press("Enter")
    expect(tray.get_by_role("img")).to_have_count(2)
    expect(tray.get_by_role("button", name="Remove rocket.png")).to_be_focused()
    page.set_input_files("#choose", {"name": HOSTILE, "mimeType": "image/svg+xml", "buffer": b"<svg/>"})
    expect(page.get_by_role("alert").filter(has_text="is not a PNG, JPEG, WEBP or GIF picture")).to_contain_text(
        HOSTILE
    )
    send(page, "Describe the picture.")
    expect(page.get_by_role("article", name="You").get_by_role("img")).to_have_count(2)


def test_a_question_waits_for_its_pictures(page: Page) -> None:
    page.evaluate(
        "() => { const read = FileReader.prototype.readAsDataURL; FileReader.prototype.readAsDataURL ="
        " function (file) { setTimeout(() => read.call(this, file), 500) } }"
    )
    page.get_by_label("Question", exact=True).fill("?")
    page.set_input_files("#choose", [SAMPLES / "cat.png", SAMPLES / "rocket.png"])
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    expect(page.locator(".turn")).to_have_count(0)
    with page.expect_request("**/chat/completions") as asked:
        page.get_by_role("button", name="Send").click()
    assert len(asked.value.post_data_json["messages"][0]["content"]) == 3


def test_a_refusal_names_its_picture_and_can_be_seen(page: Page) -> None:
    error = {"message": "It is too wide", "param": "messages[0].content[1].image_url"}
    page.route("**/chat/completions", lambda asked: asked.fulfill(status=400, json={"error": error}))
    page.set_input_files("#choose", [SAMPLES / "cat.png", SAMPLES / "rocket.png", SAMPLES / "red_circle.png"])
    page.locator("#seed").fill("-1")
    send(page, "?")
    expect(page.locator("#seed")).to_be_focused()
    expect(page.locator(".turn")).to_have_count(0)
    page.locator("#seed").fill("1")
    send(page, "?")
    refusal = page.locator(".answer").get_by_role("alert")
    expect(refusal).to_have_text("rocket.png: It is too wide")
    expect(page.locator("#tray img")).to_have_count(3)
    refused, composer = refusal.bounding_box(), page.locator("#composer").bounding_box()
    assert refused is not None
    assert composer is not None
    assert refused["y"] + refused["height"] <= composer["y"]
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator("#tray > li")).to_have_count(0)


def takes(page: Page, **limits: int) -> None:
    """What the list of models says from now on."""

    def answer(route: Route) -> None:
        listed = route.fetch().json()
        for model in listed["data"]:
            model["limit_mm_per_prompt"] = limits
        route.fulfill(json=listed)

    page.route("**/v1/models", answer)
    with page.expect_response("**/v1/adapters"):
        page.reload()
    page.wait_for_selector("#model option", state="attached")


CLIP = {"name": "clip.mp4", "mimeType": "video/mp4", "buffer": videos.encoded(videos.frames(8, 64, 64))}


def test_what_the_model_does_not_take_is_said_before_it_is_sent(page: Page) -> None:
    expect(page.locator("#choose")).to_have_attribute("accept", "image/png,image/jpeg,image/webp,image/gif")
    wrong = page.locator("#tray-note")
    page.set_input_files("#choose", CLIP)  # type: ignore[arg-type]
    expect(wrong).to_have_text("clip.mp4 is a video, and this model takes none")
    takes(page)
    expect(page.get_by_text("Add pictures", exact=True)).to_be_hidden()
    takes(page, image=2)
    page.set_input_files("#choose", [SAMPLES / "cat.png", SAMPLES / "rocket.png", SAMPLES / "red_circle.png"])
    expect(wrong).to_have_text("3 pictures: a request may have 2")
    send(page, "?")
    expect(page.locator(".turn")).to_have_count(0)
    page.get_by_role("button", name="Remove cat.png").click()
    expect(wrong).to_be_hidden()
    send(page, "Describe the pictures.")
    expect(page.locator(".answer .facts")).to_contain_text("answer")
    page.set_input_files("#choose", SAMPLES / "cat.png")
    expect(wrong).to_have_text("3 pictures, with those of earlier questions: a request may have 2")
    page.get_by_label("Send what was said before").uncheck()
    send(page, "?")
    expect(page.locator(".turn")).to_have_count(2)


def test_a_video_is_sent_as_one(page: Page) -> None:
    takes(page, image=2, video=1)
    page.set_input_files("#choose", CLIP)  # type: ignore[arg-type]
    expect(page.locator("#tray video")).to_have_attribute("aria-label", "clip.mp4")
    with page.expect_request("**/chat/completions") as asked:
        send(page, "?")
    parts = asked.value.post_data_json["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["video_url", "text"]
    page.wait_for_function("() => document.querySelector('.asked video').videoWidth === 64")
    expect(page.locator(".answer").get_by_role("alert")).to_contain_text("this model takes no videos")
    expect(page.locator("#tray video")).to_have_count(1)  # what nobody could answer can be asked otherwise


def test_a_chat_by_the_keyboard_alone(page: Page) -> None:
    page.locator("body").press("Tab")
    seen = []
    for _ in range(60):
        held = page.evaluate(
            "() => { const e = document.activeElement, l = e.labels?.[0], s = getComputedStyle(e);"
            " const t = e.type === 'file' ? getComputedStyle(l) : s;"
            " return [e.id || e.textContent, t.outlineStyle !== 'none' && parseFloat(t.outlineWidth) >= 2] }"
        )
        seen.append(held)
        if held[0] == "draw":
            break
        page.keyboard.press("Tab")
    assert seen[0] == ["skip", True]
    assert [name for name, visible in seen if not visible] == []
    page.keyboard.press("Enter")
    expect(page.get_by_role("img", name="red circle, blue square.png")).to_be_visible()
    expect(page.get_by_label("Question", exact=True)).to_be_focused()
    page.keyboard.press("ControlOrMeta+Enter")
    expect(page.locator(".answer .said")).to_have_text(re.compile("circle"))
    expect(page.get_by_label("Question", exact=True)).to_be_focused()
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="New chat")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.get_by_label("Question", exact=True)).to_be_focused()


def test_two_models_side_by_side(page: Page) -> None:
    page.get_by_label("Compare side by side with").check()
    expect(page.get_by_label("Second model")).to_have_value("second")
    give(page, "drop")
    send(page, "Describe the picture.")
    columns = page.locator(".answer")
    for name, column in zip(("opsin-mini", "second"), (columns.first, columns.last), strict=True):
        expect(column.get_by_role("heading")).to_have_text(name)
        expect(column.locator(".said")).to_have_text(DESCRIBED)
        expect(column.locator(".facts")).to_contain_text("to the first token")
    left, right = columns.first.bounding_box(), columns.last.bounding_box()
    assert left is not None
    assert right is not None
    assert (left["y"], left["width"]) == (right["y"], right["width"])
    assert left["x"] + left["width"] < right["x"]


def test_a_model_that_failed_is_not_told_what_the_other_said(page: Page) -> None:
    asked = []

    def answer(route: Route) -> None:
        request = route.request.post_data_json
        asked.append((request["model"], [message["content"] for message in request["messages"]]))
        if request["model"] == "second" and len(asked) < 3:
            route.fulfill(status=500, json={"error": {"message": "no"}})
        else:
            body = f"{chunk({'content': 'said'}, 'stop')}data: [DONE]\n\n"
            route.fulfill(body=body, content_type="text/event-stream")

    page.route("**/chat/completions", answer)
    page.get_by_label("Compare side by side with").check()
    for number in range(2):
        send(page, f"{number}?")
        expect(page.locator(".answer .facts, .answer [role=alert]")).to_have_count(2 * number + 3)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert sorted(asked[2:]) == [("opsin-mini", ["0?", "said", "1?"]), ("second", ["1?"])]


def test_answers_that_keep_to_a_form(page: Page) -> None:
    schema = {
        "type": "object",
        "properties": {"seen": {"type": "array", "items": {"const": {"<b>": HOSTILE, "n": 3}}, "minItems": 2}},
        "required": ["seen"],
        "maxProperties": 1,
    }
    schema["properties"]["seen"]["maxItems"] = 2  # type: ignore[index]
    page.get_by_label("Answer as").select_option("schema")
    page.get_by_label("Schema", exact=True).fill("{")
    send(page, "?")
    expect(page.get_by_role("alert").filter(has_text="The schema is not JSON")).to_be_visible()
    page.get_by_label("Schema", exact=True).fill(json.dumps(schema))
    send(page, "?")
    table = page.locator(".structured table table")
    expect(table.get_by_role("columnheader")).to_have_text(["<b>", "n"])
    expect(table.get_by_role("cell")).to_have_text([HOSTILE, "3"] * 2)
    assert json.loads(page.get_by_label("Raw JSON").text_content() or "") == {"seen": [{"<b>": HOSTILE, "n": 3}] * 2}
    page.get_by_label("Max tokens").fill("4")
    send(page, "?")
    expect(page.get_by_role("alert").filter(has_text="it was cut at the limit of tokens")).to_be_visible()
    page.get_by_label("Max tokens").fill("200")
    page.get_by_label("Answer as").select_option("fields")
    page.get_by_label("Fields, with commas between").fill("shape, count: integer")
    send(page, "?")
    expect(page.locator(".answer").last.get_by_role("rowheader")).to_have_text(["shape", "count"])
    page.get_by_label("Answer as").select_option("schema")
    page.get_by_label("Schema", exact=True).fill('{"type": "object", "not": {}}')
    send(page, "and now?")
    expect(page.locator(".answer").last.get_by_role("alert")).to_contain_text("not")
    expect(page.get_by_label("Question", exact=True)).to_have_value("and now?")


def test_an_answer_is_stopped(page: Page, server: Served, key: str) -> None:
    page.get_by_label("Answer as").select_option("schema")
    page.get_by_label("Schema", exact=True).fill('{"type": "array", "items": {"const": "on and on"}, "minItems": 150}')
    page.get_by_label("Max tokens").fill("900")
    page.get_by_label("Question", exact=True).fill("?")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".answer .said")).to_contain_text("on and on")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".facts")).to_have_text("stopped")
    expect(page.locator(".answer").get_by_role("alert")).to_contain_text("it was stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert len(page.locator(".answer").inner_text()) < 150 * len('"on and on"')
    server.wait_idle(10, headers={"Authorization": f"Bearer {key}"})


def test_whatever_a_model_says_is_text(page: Page) -> None:
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": HOSTILE, "arguments": '{"x": '}}
    more = {"index": 0, "function": {"arguments": json.dumps(HOSTILE) + "}"}}
    deltas = [{"reasoning_content": HOSTILE}, {"content": HOSTILE}, {"tool_calls": [call]}, {"tool_calls": [more]}]
    says(page, *(chunk(delta) for delta in deltas), chunk({}, "tool_calls"))
    send(page, HOSTILE)
    expect(page.locator(".answer > .said")).to_have_text(HOSTILE)
    page.get_by_text("Thoughts").click()
    expect(page.locator(".thoughts")).to_have_text(HOSTILE)
    expect(page.locator(".calls")).to_have_text(f'{HOSTILE} {{"x": {json.dumps(HOSTILE)}}}')
    expect(page.get_by_role("article", name="You")).to_have_text(HOSTILE)
    page.unroute_all()
    says(page, chunk({"content": "half"}), f"data: {json.dumps({'error': {'message': HOSTILE}})}\n\n")
    send(page, "?")
    expect(page.locator(".answer").last.get_by_role("alert")).to_have_text(HOSTILE)
    assert page.locator("main img[src=x], main script").count() == 0
    other = page.context.new_page()  # (whose console says so)
    other.goto(page.url)
    assert "blocked" in other.evaluate(
        "() => { try { document.body.innerHTML = '<b>'; return 'set' } catch (e) { return `blocked: ${e}` } }"
    )


def test_a_refusal_that_comes_late_asks_for_no_other_key(stranger: Page, key: str) -> None:
    held: list[Route] = []
    expect(stranger.get_by_role("dialog")).to_be_visible()
    stranger.route("**/version", lambda asked: held.append(asked))
    stranger.reload()
    expect(stranger.get_by_role("dialog")).to_be_visible()
    stranger.get_by_label("Key", exact=True).fill(key)
    stranger.get_by_role("button", name="Use this key").click()
    expect(stranger.get_by_label("Model", exact=True)).to_have_value("opsin-mini")
    with stranger.expect_response("**/version"):
        held[0].continue_()
    stranger.wait_for_timeout(200)
    expect(stranger.get_by_role("dialog")).to_be_hidden()
    held[1].continue_()
    expect(stranger.locator("#served")).to_have_text("opsin-mini")


def test_a_wrong_key_is_said_and_the_right_one_stays_in_the_tab(stranger: Page, key: str) -> None:
    dialog = stranger.get_by_role("dialog", name="API key")
    expect(dialog).to_contain_text("No API key was given")
    field = stranger.get_by_label("Key", exact=True)
    field.fill("ключ")
    stranger.keyboard.press("Enter")
    expect(dialog).to_be_visible()
    assert "Latin" in field.evaluate("(field) => field.validationMessage")
    field.fill("sk-wrong")
    stranger.keyboard.press("Enter")
    expect(dialog).to_contain_text("The API key is not one of this server's")
    expect(stranger.locator("#notice")).to_contain_text("The API key is not one of this server's")
    stranger.get_by_label("Key", exact=True).fill(key)
    stranger.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(stranger.get_by_label("Model", exact=True)).to_have_value("opsin-mini")
    expect(stranger.locator("#notice")).to_be_empty()
    assert stranger.evaluate("() => [localStorage.length, document.cookie, Object.values(sessionStorage)]") == [
        0,
        "",
        [key],
    ]
    assert key not in stranger.url
