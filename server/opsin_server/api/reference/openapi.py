"""The API as an OpenAPI 3.1 document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, TypeGuard

import msgspec

from opsin_server import __version__
from opsin_server.api.reference.answer_operations import ANSWER_RESOURCES
from opsin_server.api.reference.job_operations import JOB_RESOURCES
from opsin_server.api.reference.json_schema import REF, answer_schemas, request_schemas
from opsin_server.api.reference.kept_operations import KEPT_RESOURCES
from opsin_server.api.reference.operations import FORM, JSON, Answer, Operation, Query, Resource

RESOURCES: tuple[Resource, ...] = (*ANSWER_RESOURCES, *JOB_RESOURCES, *KEPT_RESOURCES)
ABOUT = "One vision-language model, and adapters of it. Null stands for an optional field that was left out."
REASONS = {
    400: "Something in the request is wrong, or not served.",
    401: "No key, or a wrong one.",
    404: "What is named is not there.",
    408: "The body stopped coming.",
    413: "The body is too large.",
    431: "The headers are too large.",
    500: "The server failed.",
    503: "Not now: try again after `Retry-After`, where there is one.",
}
TEXT_OR_NULL = {"type": ["string", "null"]}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "minLength": 1},
                "type": {"enum": ["invalid_request_error", "server_error"]},
                "param": TEXT_OR_NULL,
                "code": TEXT_OR_NULL,
            },
        }
    },
}
ANTHROPICS_ERROR = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string", "minLength": 1}},
        },
        "request_id": {"type": "string"},
    },
}
HEALTH = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"type": "string"}, "reason": {"type": "string"}},
}
BEARER = "bearer"
PROBE_FAILS = 503


@cache
def encoded_document(root_path: str, *, keeps_answers: bool, has_keys: bool) -> bytes:
    return msgspec.json.encode(document(root_path, keeps_answers=keeps_answers, has_keys=has_keys))


def document(root_path: str = "", *, keeps_answers: bool = True, has_keys: bool = True) -> dict[str, Any]:
    """root_path: a proxy's prefix. keeps_answers: whether there are the routes of kept chats. has_keys: whether a key
    is asked for; where none is, one may be sent."""
    operations = [
        (resource.title, operation)
        for resource in RESOURCES
        for operation in resource.operations
        if keeps_answers or not operation.only_with_store
    ]
    models = dict.fromkeys(model for _, operation in operations for model in operation.bodies)
    types = {answer for _, operation in operations for answer in operation.answers.values() if is_type(answer)}
    bodies, shared = request_schemas(list(models))
    answers, said = answer_schemas(sorted(types, key=str))
    paths: dict[str, Any] = {}
    for title, operation in operations:
        item = paths.setdefault(operation.path, {})
        item[operation.method.lower()] = {"tags": [title], **_described(operation, bodies, answers)}
        if operation.aliases:
            item["x-opsin-also-at"] = list(operation.aliases)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Opsin", "version": __version__, "description": ABOUT},
        "servers": [{"url": root_path or "/"}],
        "security": [{BEARER: []}, *([] if has_keys else [{}])],
        "tags": [{"name": title} for title in dict.fromkeys(title for title, _ in operations)],
        "paths": paths,
        "components": {
            "schemas": {**shared, **said, "Error": ERROR, "AnthropicError": ANTHROPICS_ERROR, "Health": HEALTH},
            "securitySchemes": {BEARER: {"type": "http", "scheme": "bearer"}},
        },
    }


def is_type(answer: Answer) -> TypeGuard[type[Any]]:
    return answer is not None and not isinstance(answer, str)


def _described(operation: Operation, bodies: Mapping[Any, Any], answers: Mapping[Any, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {"operationId": operation.name, "summary": operation.summary}
    if not operation.needs_key:
        described["security"] = []
    if parameters := list(_parameters(operation)):
        described["parameters"] = parameters
    if operation.has_body:
        described["requestBody"] = _body(operation, bodies)
    responses = {str(status): _failure(operation, status) for status in operation.failures}
    if operation.answers:
        content = {kind: _answer(answer, answers) for kind, answer in operation.answers.items()}
        responses[str(operation.status)] = {"description": operation.summary, "content": content}
    return {**described, "responses": dict(sorted(responses.items()))}


def _parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", operation.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    for query in operation.query:
        yield _query(query)


def _query(query: Query) -> dict[str, Any]:
    style = {"style": "deepObject", "explode": True} if query.deep else {}
    return {"name": query.name, "in": "query", "description": query.remark, "schema": dict(query.schema), **style}


def _body(operation: Operation, bodies: Mapping[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    schemas = [bodies[model] for model in operation.bodies]
    if schemas:
        content[JSON] = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
    if operation.form:
        content[FORM] = {
            "schema": {
                "type": "object",
                "properties": {field.name: {**field.schema, "description": field.remark} for field in operation.form},
                "required": [field.name for field in operation.form if field.required],
                "additionalProperties": False,
            }
        }
    return {"required": operation.needs_body, "content": content}


def _failure(operation: Operation, status: int) -> dict[str, Any]:
    name = "AnthropicError" if operation.has_anthropics_errors else "Error"
    if not operation.needs_key and status == PROBE_FAILS:
        name = "Health"
    return {"description": REASONS[status], "content": {JSON: {"schema": {"$ref": REF.format(name)}}}}


def _answer(answer: Answer, answers: Mapping[Any, Any]) -> dict[str, Any]:
    if answer is None:
        return {}
    if is_type(answer):
        return {"schema": answers[answer]}
    if not answer:
        return {"schema": {"type": "object"}}
    properties: dict[str, Any] = {"object": {"const": answer}}
    if answer == "list":
        properties["data"] = {"type": "array"}
    return {"schema": {"type": "object", "properties": properties, "required": list(properties)}}
