"""Training files and jobs in the playground: what is learned, what is wrong, and a job from a file to its model."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from support.served import Served
from support.talk import SAMPLES, assistant, sample, user

pytestmark = pytest.mark.clients

HOSTILE = "<img src=x onerror=alert(1)>"
CIRCLE = sample("red_circle.png")


def row(question: str, *answers: tuple[str, int]) -> dict[str, Any]:
    """A picture and a question, then answers with their weights."""
    turns = [user(CIRCLE, question)]
    for text, weight in answers:
        turns += [{**assistant(text), "weight": weight}, user("and?")]
    return {"messages": turns[:-1]}


def upload(page: Page, *rows: Any, name: str = "rows.jsonl") -> None:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    page.get_by_role("link", name="Training data").click()
    page.set_input_files("#jsonl", {"name": name, "mimeType": "application/jsonl", "buffer": b"\n".join(lines)})


def test_what_is_learned_is_marked(page: Page) -> None:
    rows = [row(f"{HOSTILE} {number}?", ("nothing", 0), (f"ein Kreis {number} {HOSTILE}", 1)) for number in range(12)]
    upload(page, *rows, name=f"{HOSTILE}.jsonl")
    expect(page.get_by_text("All 12 lines of the file would be trained on.")).to_be_visible()
    expect(page.locator("#file option:checked")).to_contain_text(f"{HOSTILE}.jsonl")
    first = page.locator(".rows > li").first
    expect(first.get_by_role("heading")).to_contain_text(re.compile(r"Line 1 \d+ of \d+ tokens are learned"))
    expect(first.locator("mark")).to_have_text([f"ein Kreis 0 {HOSTILE}", "<|im_end|>"])
    expect(first.locator("mark .special")).to_have_text(["<|im_end|>"])
    expect(first.locator(".run")).to_contain_text("nothing")
    expect(first.locator(".picture")).to_contain_text("tokens")
    assert first.locator(".picture img").evaluate(
        "async (image) => { await image.decode(); return image.naturalWidth }"
    )
    page.locator("#file-form").get_by_label("What is learned").select_option("all")
    page.get_by_role("button", name="Check").click()
    expect(first.locator("mark").filter(has_text="and?")).to_be_visible()
    assert page.locator("main img[src=x]").count() == 0


def test_faults_are_told_by_line(page: Page) -> None:
    good = [row(f"{number}?", ("yes", 1)) for number in range(11)]
    upload(page, *good[:2], b"{", *good[2:], {"messages": [user("?"), assistant("")], HOSTILE: 1})
    expect(page.locator(".verdict")).to_contain_text("A job would fail: the training file is refused: line 3:")
    faults = page.locator(".faults")
    expect(faults.get_by_role("rowheader")).to_have_text(["line 3", "line 13"])
    expect(faults.get_by_role("cell").first).to_contain_text("not valid JSON")
    expect(faults.get_by_role("cell").last).to_contain_text(HOSTILE)
    expect(page.get_by_role("button", name="Train on it")).to_have_count(0)
    upload(page, good[0])
    expect(page.locator(".verdict")).to_contain_text("the training file has 1 rows to train on; at least 10 are needed")


def test_a_job_from_a_file_to_a_chat_with_its_model(page: Page, server: Served) -> None:
    upload(page, *(row(f"What is it ({number})?", ("Ein roter Kreis.", 1)) for number in range(12)))
    checks = page.get_by_role("form", name="Which file is checked")
    checks.get_by_label("What is learned").select_option("last")
    checks.get_by_label("Wrong rows").select_option("skip")
    with page.expect_response("**/check"):
        checks.get_by_role("button", name="Check").click()
    page.get_by_role("button", name="Train on it").click()
    form = page.get_by_role("form", name="A new job")
    expect(form.get_by_label("Training file")).not_to_have_value("")
    form.get_by_label("Validation file").select_option(index=1)
    form.get_by_label("LoRA rank").fill("9000")
    form.get_by_role("button", name="Create job").click()
    expect(form.get_by_role("alert")).to_contain_text("opsin.lora_rank")
    form.get_by_label("LoRA rank").fill("8")
    form.get_by_label("Epochs").fill("8")
    form.get_by_label("Batch size").fill("4")
    form.get_by_label("Suffix of its name").fill("kreis")
    with page.expect_request("**/fine_tuning/jobs") as asked:
        form.get_by_role("button", name="Create job").click()
    assert asked.value.post_data_json["opsin"] == {"train_on": "last", "on_bad_row": "skip", "lora_rank": 8}
    job = page.locator("#job")
    expect(job.locator("header .state")).to_have_text("succeeded", timeout=120_000)
    curve = job.get_by_role(
        "img", name=re.compile(r"Training loss [\d.]+ at step 1, [\d.]+ at step 24; validation loss")
    )
    expect(curve).to_be_visible()
    assert len((curve.locator("polyline.train").get_attribute("points") or "").split()) == 24
    assert curve.locator("circle").count() == 8
    job.get_by_text("As a table").click()
    expect(job.locator("figure").get_by_role("rowheader").last).to_have_text("24")
    expect(job.get_by_label("Events, the newest first")).to_contain_text("The job has successfully completed")
    expect(page.locator("#job-list .state")).to_have_text("succeeded")
    expect(job.get_by_role("rowheader", name=re.compile("^step"))).to_have_count(3)
    job.get_by_role("button", name=re.compile(r"Try ft:opsin-mini:opsin:kreis:\w+:ckpt-step-24")).click()
    expect(page.get_by_label("Model", exact=True)).to_have_value(re.compile("ckpt-step-24$"))
    page.set_input_files("#choose", SAMPLES / "red_circle.png")
    page.get_by_label("Question", exact=True).fill("What is it (1)?")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".answer .said")).to_have_text(re.compile(".+"))


def test_a_table_of_losses_has_every_validation(page: Page) -> None:
    table = page.evaluate(
        """async (address) => {
          const { lossCurve } = await import(address);
          const train = Array.from({ length: 301 }, (_, at) => ({ step: at + 1, value: 1 }));
          const cells = (valid) => [...lossCurve({ train, valid, total: 301 }, 600, true).querySelectorAll('tr')]
            .map((row) => [...row.children].map((cell) => cell.textContent));
          return [cells([{ step: 100, value: 2 }, { step: 200, value: 3 }]), cells([])];
        }""",
        page.url.split("#")[0] + "/loss_curve.js",
    )
    both, alone = table
    assert both[0] == ["step", "training", "validation"]
    assert [row for row in both[1:] if row[2]] == [["100", "1.0000", "2.0000"], ["200", "1.0000", "3.0000"]]
    assert len(both) < 60
    assert alone[0] == ["step", "training"]
    assert {len(row) for row in alone} == {2}


def test_batches_are_listed(page: Page, server: Served, key: str) -> None:
    client = server.client(api_key=key)
    body = {"model": "opsin-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = client.files.create(file=("batch.jsonl", json.dumps(line).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    page.route("**/v1/models", lambda asked: asked.abort())
    page.get_by_role("link", name="Jobs").click()
    expect(page.locator("#notice")).to_have_text("The server does not answer")
    page.unroute_all()  # it is asked again
    row = page.get_by_role("row").filter(has_text=made.id)
    expect(row).to_contain_text("completed")
    expect(row).to_contain_text("1 of 1")
    expect(page.locator("#notice")).to_be_empty()


def test_a_job_is_paused_goes_on_and_is_cancelled(page: Page) -> None:
    upload(page, *(row(f"{number}?", ("Ein roter Kreis.", 1)) for number in range(12)))
    page.get_by_role("button", name="Train on it").click()
    page.get_by_label("Epochs").fill("1000")
    page.get_by_role("button", name="Create job").click()
    header = page.locator("#job header")
    expect(page.locator("#job svg")).to_be_visible()
    header.get_by_role("button", name="Pause").press("Enter")
    expect(header.locator(".state")).to_have_text("paused")
    page.route("**/fine_tuning/jobs/*", lambda asked: asked.abort())
    expect(page.locator("#job-lost")).to_have_text("The server does not answer")
    expect(page.locator("#job svg")).to_be_visible()
    page.unroute_all()
    expect(page.locator("#job-lost")).to_have_count(0)
    header.get_by_role("button", name="Resume").press("Enter")
    expect(header.locator(".state")).to_have_text("running")
    for button, state in (("Pause", "paused"), ("Cancel", "paused"), ("Cancel for good", "cancelled")):
        header.get_by_role("button", name=button).press("Enter")
        expect(header.locator(".state")).to_have_text(state)
        expect(page.locator("#job:focus, #job :focus")).to_have_count(1)  # what was pressed is gone, its place is not
    expect(header.get_by_role("button")).to_have_count(0)
