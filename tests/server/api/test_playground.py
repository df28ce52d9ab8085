"""The playground's page: what is handed out to whom, and that it is whole."""

from __future__ import annotations

import re
from typing import Any

from fake_engine import FakeEngine
from test_addresses import ask

from opsin_server.api.routes.playground import ASSETS, FOLDER

KEY = "sk-secret-of-this-test"
ADDRESS = re.compile(r"""(?:from|import)\s+'\./([\w.]+)'|(?:src|href)="playground/([\w.]+)\"""")
ELSEWHERE = re.compile(rb"""//(?!www\.w3\.org/)[a-z0-9]+\.[a-z]|innerHTML|outerHTML|insertAdjacentHTML|eval\(""")


def test_its_files_need_no_key_and_hold_the_browser_to_this_server(start: Any) -> None:
    server = start(FakeEngine(), api_keys=(KEY,))
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for path in ("/playground", "/playground/", *(f"/playground/{name}" for name in ASSETS)):
        status, headers, body = ask(server, "GET", path)
        assert (status, headers["x-content-type-options"]) == (200, "nosniff")
        assert headers["referrer-policy"] == "no-referrer"
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; img-src 'self' data: blob:;")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        suffix = f".{path.rpartition('.')[2]}" if "." in path else ".html"
        assert headers["content-type"] == f"{kinds[suffix]}; charset=utf-8"
        assert body
        tag = {"If-None-Match": headers["etag"]}
        again = ask(server, "GET", path, "".join(f"{name}: {value}\r\n" for name, value in tag.items()))
        assert (again[0], again[2]) == (304, b"")
    assert ask(server, "GET", "/v1/models")[0] == 401


def test_its_addresses_are_relative_and_lead_to_its_files() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text("utf-8")
        assert not ELSEWHERE.search(path.read_bytes()), path.name
        for named in (one or other for one, other in ADDRESS.findall(text)):
            assert named in ASSETS, f"{path.name} asks for {named}"
    assert {path.name for path in FOLDER.iterdir()} == set(ASSETS)


def test_a_slash_at_the_end_stands_one_folder_deeper(plain: Any) -> None:
    for path, found in (("/playground", b'src="playground/app.js"'), ("/playground/", b'src="./app.js"')):
        assert found in ask(plain, "GET", path)[2]


def test_it_can_be_left_out(start: Any) -> None:
    server = start(FakeEngine(), playground=False)
    guarded = start(FakeEngine(), playground=False, api_keys=(KEY,))
    for path in ("/playground", "/playground/app.js"):
        assert ask(server, "GET", path)[0] == 404
        assert ask(guarded, "GET", path)[0] == 401
