"""GET /openapi.json: all routes but the playground's page and no others, for whoever has a key."""

from __future__ import annotations

import json
import re

import httpx
import pytest
from fake_engine import FakeEngine, Script
from running_server import RunningServer

from opsin_server.api.middleware.error_responses import _leaves
from opsin_server.api.middleware.paths import OPENAI
from support.served import PLAIN

PAGE = {("GET", "/playground"), ("GET", "/playground/{name}")}


@pytest.mark.parametrize("answers", [None, object()], ids=["keeps none", "keeps answers"])
def test_every_route_is_in_the_document_and_every_path_is_a_route(answers):
    server = RunningServer(FakeEngine(Script(b"hello")), answers=answers, api_keys=("secret",), root_path="/below")
    try:
        assert httpx.get(server.url + "/openapi.json", **PLAIN).status_code == 401
        answer = httpx.get(server.url + "/openapi.json", headers={"Authorization": "Bearer secret"}, **PLAIN)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        document = answer.json()
        assert document["servers"] == [{"url": "/below"}]
        described = {
            (method.upper(), path.removeprefix(OPENAI))
            for canonical, item in document["paths"].items()
            for path in (canonical, *item.get("x-opsin-also-at", ()))
            for method in item.keys() & {"get", "post", "delete"}
        }
        routes = [leaf for route in server.app.router.routes for leaf in _leaves(route)]
        served = {
            (method, re.sub(r":path}", "}", route.path)) for route in routes for method in route.methods - {"HEAD"}
        }
        assert described == served - PAGE
        assert served >= PAGE
        assert len(described) > 100 - 10 * (answers is None)
        for name in set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document))):
            assert name in document["components"]["schemas"], name
    finally:
        server.close()
