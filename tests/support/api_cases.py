"""Requests that schemathesis makes of the OpenAPI document: right and wrong ones of every operation, and what must be
true of each answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from math import ceil
from typing import Any

import jsonschema
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import Failure
from schemathesis.specs.openapi.checks import negative_data_rejection, response_schema_conformance

from opsin_server.api.reference.openapi import ANTHROPICS_ERROR, ERROR
from support.talk import MODEL_NAME

USER = {"role": "user", "content": "Hello!"}
TOKENS = 4  # of an answer, at most
# Of each operation that asks the model: a body that is answered, and which field bounds the answer.
ASKED: dict[str, tuple[dict[str, Any], str | None]] = {
    "createChatCompletion": ({"messages": [USER]}, "max_tokens"),
    "createDeploymentChatCompletion": ({"messages": [USER]}, "max_tokens"),
    "createResponse": ({"input": "Hello!"}, "max_output_tokens"),
    "createCompletion": ({"prompt": "Hello!"}, "max_tokens"),
    "createDeploymentCompletion": ({"prompt": "Hello!"}, "max_tokens"),
    "createMessage": ({"messages": [USER]}, "max_tokens"),
    "countMessageTokens": ({"messages": [USER]}, None),
    "createEmbedding": ({"input": "Hello!"}, None),
    "createDeploymentEmbedding": ({"input": "Hello!"}, None),
    "tokenize": ({"prompt": "Hello!"}, None),
    "detokenize": ({"tokens": [1]}, None),
}
SELDOM = 4  # of so many bodies one keeps what was made up for a needed field
OF_BODIES, OF_PARAMETERS = 2, 1  # shares of the requests
STATUSES_OF_PATHS = {404, 405}  # of an address that is another, or none: a made-up id may hold a slash
JSON = "application/json"
OPENAIS, ANTHROPICS = (jsonschema.Draft202012Validator(schema) for schema in (ERROR, ANTHROPICS_ERROR))


def run(document: dict[str, Any], url: str, cases: int, number: int) -> Counter[int]:
    """So many requests or some more, of every operation: their statuses. number: of what is made up."""
    found: Counter[int] = Counter()
    operations = [result.ok() for result in schemathesis.openapi.from_dict(document).get_all_operations()]
    shares = [(operation, mode, share) for operation in operations for mode, share in _shares(operation)]
    one = cases / sum(share for _, _, share in shares)
    with requests.Session() as session:
        session.trust_env = False
        for operation, mode, share in shares:
            found += run_one(operation, mode, session, url, ceil(one * share), number)
    return found


def _shares(operation: Any) -> Iterator[tuple[GenerationMode, int]]:
    """What takes nothing can be asked in one way alone, and what takes an id not wrongly."""
    if operation.body or operation.query:
        share = OF_BODIES if operation.body else OF_PARAMETERS
        yield GenerationMode.POSITIVE, share
        yield GenerationMode.NEGATIVE, share
    else:
        yield GenerationMode.POSITIVE, OF_PARAMETERS if operation.path_parameters else 0


def run_one(
    operation: Any, mode: GenerationMode, session: requests.Session, url: str, share: int, number: int
) -> Counter[int]:
    found: Counter[int] = Counter()
    described = operation.definition.raw

    @seed(number)
    @settings(
        max_examples=max(share, 1),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(operation.as_strategy(generation_mode=mode), st.integers(0, SELDOM - 1))
    def one(case: Case, chance: int) -> None:
        changed = shape(case, described["operationId"], chance)
        response = case.call(base_url=url, session=session, timeout=60)
        found[response.status_code] += 1
        check(case, response, described, changed)

    one()
    return found


def shape(case: Case, name: str, chance: int) -> bool:
    """An answer is short, and most bodies have what is needed, beside what was made up: so they reach the engine.
    Whether the case is changed."""
    if name not in ASKED or not isinstance(case.body, dict):
        return False
    needed, limit = ASKED[name]
    if chance:
        case.body = {**case.body, **needed, "model": MODEL_NAME}
        case.path_parameters.update({"name": MODEL_NAME} if case.path_parameters else {})
    if limit is not None and isinstance(case.body.get(limit, TOKENS), int):
        case.body = {**case.body, limit: min(case.body.get(limit, TOKENS), TOKENS)}
    if "max_completion_tokens" in case.body:
        case.body = {name: value for name, value in case.body.items() if name != "max_tokens"}
    return True


def check(case: Case, response: Any, described: dict[str, Any], changed: bool) -> None:
    """No 5xx, a status and a content type of the document, and a body of their shape; and what the document forbids in
    JSON is refused. (A form or an address has nothing but texts.)"""
    try:
        _check(case, response, described, changed)
    except (AssertionError, ValueError, Failure, BaseExceptionGroup) as failure:  # what was sent is worth the time now
        answer = f"{response.status_code} {response.content[:1000]!r}"
        raise AssertionError(f"{failure}\n{case.as_curl_command()}\n{answer}") from failure


def _check(case: Case, response: Any, described: dict[str, Any], changed: bool) -> None:
    status, said = response.status_code, described["responses"]
    assert status < 500
    assert str(status) in said or status in STATUSES_OF_PATHS, f"{status} is not documented"
    kind = response.headers.get("content-type", [""])[0].partition(";")[0]
    if status >= 400:
        assert kind == JSON
        anthropics = case.path.endswith(("/messages", "/count_tokens")) and case.method == "POST"
        (ANTHROPICS if anthropics else OPENAIS).validate(json.loads(response.content))
        return
    assert kind in said[str(status)]["content"]
    if not any("/" in str(value) for value in case.path_parameters.values()):
        forbids = () if changed or case.media_type != JSON else (negative_data_rejection,)
        case.validate_response(response, checks=[response_schema_conformance, *forbids])
