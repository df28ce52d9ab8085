"""Bodies of chat requests, as the wire's model takes or refuses them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from opsin_server.api.routes.read_body import parse
from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.errors import BadRequest

USER = {"role": "user", "content": "hi"}


def request(**changes: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **changes}


def accepted(**changes: Any) -> ChatRequest:
    return parse(ChatRequest, json.dumps(request(**changes)).encode())


def refused(**changes: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        accepted(**changes)
    return caught.value
