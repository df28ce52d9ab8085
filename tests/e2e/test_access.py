"""Keys, a browser's page and a proxy's prefix, as `opsin serve` is told of them; and who is let in."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from support.served import Process, Served
from support.talk import MODEL_NAME, png, sample, user

KEY, PAGE = "correct-horse", "https://app.example.com"
QUESTION = [user(png(sample("red_circle.png")), "What is in the picture?")]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    """The variables as Kubernetes gives them when a secret was made from a file: with a line end."""
    environment = {"OPSIN_API_KEY": f"{KEY}\n", "OPSIN_API_KEYS": "battery, staple\n", "OPSIN_LOG_LEVEL": "info\n"}
    server = Served("--allow-origin", PAGE, "--root-path", "/llm", env=environment)
    try:
        yield server
        server.close()
    finally:
        server.discard()


def test_every_key_opens_and_no_part_of_one_does(guarded: Served) -> None:
    for key in (KEY, "battery", "staple"):
        answer = guarded.client(api_key=key).chat.completions.create(model=MODEL_NAME, messages=QUESTION, temperature=0)
        assert answer.choices[0].message.content == "A red circle."
    for key in ("correct", "horse", "battery,", "battery, staple"):
        with pytest.raises(openai.AuthenticationError):
            guarded.client(api_key=key).models.list()


def test_what_is_printed_says_where_the_key_goes_and_shows_none(guarded: Served) -> None:
    assert "in a shell that has one of this server's keys in OPSIN_API_KEY:\n" in guarded.stderr
    assert 'Bearer $OPSIN_API_KEY"' in guarded.stderr
    assert not {key for key in (KEY, "battery", "staple") if key in guarded.stdout + guarded.stderr}


def test_azures_client_behind_a_prefix(guarded: Served) -> None:
    for prefix in ("", "/llm"):
        client = openai.AzureOpenAI(
            azure_endpoint=guarded.url + prefix, api_version="2024-10-21", api_key=KEY, max_retries=0
        )
        stream = client.chat.completions.create(model=MODEL_NAME, messages=QUESTION, temperature=0, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == "A red circle."


def test_a_page_in_a_browser(guarded: Served) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    url = f"{guarded.url}/v1/chat/completions"
    with httpx.Client(trust_env=False, timeout=60) as browser:
        preflight = browser.options(url, headers={"origin": PAGE, **asked})
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, PAGE)
        body = {"model": MODEL_NAME, "messages": QUESTION, "stream": True}
        answer = browser.post(url, headers={"origin": PAGE, "authorization": f"Bearer {KEY}"}, json=body)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
        assert answer.text.endswith("data: [DONE]\n\n")


def test_probes_need_no_key(guarded: Served) -> None:
    for path in ("/health", "/healthz", "/ping", "/llm/health/ready", "//livez/"):
        assert guarded.get(path).status_code == 200
        assert httpx.head(guarded.url + path, trust_env=False).status_code == 200
    assert guarded.get("/metrics").status_code == 401


def test_a_key_with_blanks_does_not_start() -> None:
    with Process("serve", "--port", "0", env={"OPSIN_API_KEY": "correct horse battery"}) as server:
        assert server.wait() == 1
        assert "OPSIN_API_KEYS" in server.stderr
        assert "horse" not in server.stderr
        assert server.stderr.count("\n") == 1
