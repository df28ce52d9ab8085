"""docs/api.md and the OpenAPI document say what is there: routes, models, and all that OpenAI's SDK can send."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import openai
import pytest
from openapi_spec_validator import validate
from pydantic import BaseModel
from typing_extensions import is_typeddict

from opsin_server.api.reference.fields import models_in, validator
from opsin_server.api.reference.not_served import NOT_SERVED, REFUSED
from opsin_server.api.reference.openapi import RESOURCES, document
from opsin_server.api.reference.page import page
from opsin_server.chat.fields import Neutral, Unread

PAGE = Path(__file__).parents[2] / "docs/api.md"
OPERATIONS = {operation.name: (resource, operation) for resource in RESOURCES for operation in resource.operations}
# The module of the SDK's request type, and the operation that reads it.
REQUESTS = {
    "chat.completion_create_params": "createChatCompletion",
    "chat.completion_list_params": "listChatCompletions",
    "chat.completion_update_params": "updateChatCompletion",
    "chat.completions.message_list_params": "getChatCompletionMessages",
    "responses.response_create_params": "createResponse",
    "responses.response_retrieve_params": "getResponse",
    "responses.input_item_list_params": "listInputItems",
    "responses.response_compact_params": "compactResponse",
    "responses.input_token_count_params": "getInputTokens",
    "completion_create_params": "createCompletion",
    "embedding_create_params": "createEmbedding",
    "file_create_params": "createFile",
    "file_list_params": "listFiles",
    "upload_create_params": "createUpload",
    "upload_complete_params": "completeUpload",
    "uploads.part_create_params": "addUploadPart",
    "fine_tuning.alpha.grader_run_params": "runGrader",
    "fine_tuning.alpha.grader_validate_params": "validateGrader",
    "fine_tuning.job_create_params": "createFineTuningJob",
    "fine_tuning.job_list_params": "listPaginatedFineTuningJobs",
    "fine_tuning.job_list_events_params": "listFineTuningEvents",
    "fine_tuning.jobs.checkpoint_list_params": "listFineTuningJobCheckpoints",
    "batch_create_params": "createBatch",
    "batch_list_params": "listBatches",
    "webhooks.webhook_create_params": "createWebhook",
    "webhooks.webhook_list_params": "listWebhooks",
    "webhooks.webhook_rotate_secret_params": "rotateWebhookSecret",
    "webhooks.webhook_test_params": "testWebhook",
    "webhooks.webhook_update_params": "updateWebhook",
}
# Of operations that are not here, or that refuse whatever is sent.
OTHERS = re.compile(
    r"(admin|audio|beta|containers?|conversations|evals?|image|live|moderation|realtime|skills?|vector_stores?|video"
    r"|content_provenance_check|decision|fine_tuning\.checkpoints)[._].*"
)


def test_the_page_is_current():
    """If not: .venv/bin/python -m opsin_server.api.reference.page docs/api.md"""
    assert PAGE.read_text("utf-8") == page()
    titles = re.findall(r"^#+ (.+)$", page(), re.MULTILINE)
    assert len(set(titles)) == len(titles), "links need titles that stand once"


def test_the_document_is_an_openapi_document():
    validate(document())


def test_every_path_of_the_sdk_is_a_route_or_named_as_none():
    served = {re.sub(r"{\w+}", "{}", operation.path) for _, operation in OPERATIONS.values()}
    for path in sorted(sdk_paths()):
        unserved = any(path == prefix or path.startswith(prefix + "/") for prefix, _ in NOT_SERVED)
        found = re.sub(r"{\w+}", "{}", f"/v1{path}")
        assert (found in served) != unserved, path


def sdk_paths() -> set[str]:
    sources = [path.read_text("utf-8") for path in Path(openai.__file__).parent.joinpath("resources").rglob("*.py")]
    call = re.compile(r"self\._(?:get|post|delete|get_api_list)\(\s*(?:path_template\(\s*)?\"(/[^\"?]*)")
    found = {path for source in sources for path in call.findall(source)}
    assert len(found) > 200
    return found


def test_every_request_type_of_the_sdk_is_known():
    types = Path(openai.__file__).parent / "types"
    names = {".".join(path.relative_to(types).with_suffix("").parts) for path in types.rglob("*_params.py")}
    assert {name for name in names if not OTHERS.fullmatch(name)} == REQUESTS.keys()


@pytest.mark.parametrize("module", REQUESTS)
def test_every_field_of_the_sdk_is_on_the_page(module: str):
    """Honoured, ignored, neutral, or refused by name; and what is said to be refused is not more than what there is."""
    resource, operation = OPERATIONS[REQUESTS[module]]
    name = "".join(word.capitalize() for word in module.split(".")[-1].split("_"))
    kinds = list(typed_dicts(getattr(import_module(f"openai.types.{module}"), name)))
    assert kinds
    refused = {(at, value) for at, values in REFUSED.get(resource.title, ()) for value in values}
    if operation.bodies:
        found = {unknown for kind in kinds for unknown in unsaid(kind, operation.bodies, "", set())}
        fields = {field for kind in kinds for field in get_type_hints(kind)}
        assert found == {(at, value) for at, value in refused if at.split(".")[0] in fields}
    else:
        known = {parameter.name for parameter in operation.query} | {
            field.name.split("[")[0] for field in operation.form
        }
        sent = {field for kind in kinds for field in get_type_hints(kind) if f"{{{field}}}" not in operation.path}
        assert sent - known == {value for at, value in refused if at == f"GET {operation.path}"}


def unsaid(sent: Any, models: tuple[type[BaseModel], ...], where: str, seen: set[Any]) -> Iterator[tuple[str, str]]:
    """The SDK's type beside the models that read it: where, and which fields, or values of `type`, none of them has."""
    if (sent, models) in seen:
        return
    seen.add((sent, models))
    known: dict[str, list[Any]] = {}
    for model in models:
        for name, field in model.model_fields.items():
            known.setdefault(field.alias or name, []).append(field)
    hints = get_type_hints(sent)
    if kinds := set(strings(hints.get("type"))) if "type" in known else set():
        accepted = {kind for field in known["type"] for kind in accepted_strings(field)}
        yield from ((f"{where}type", kind) for kind in kinds - accepted)
        if not kinds & accepted:
            return
    for name, hint in hints.items():
        if name not in known:
            yield where + name, name
        acting = [f for f in known.get(name, ()) if not validator(f, Unread) and not validator(f, Neutral)]
        inner = tuple(dict.fromkeys(model for field in acting for model in models_in(field.annotation)))
        for kind in typed_dicts(hint) if inner else ():
            yield from unsaid(kind, inner, f"{where}{name}.", seen)


def accepted_strings(field: Any) -> Iterator[Any]:
    yield from strings(field.annotation)
    if neutral := validator(field, Neutral):
        yield from neutral.accepted


def strings(hint: Any) -> Iterator[str]:
    for argument in get_args(hint):
        if get_origin(hint) is not Literal:
            yield from strings(argument)
        elif isinstance(argument, str):
            yield argument


def typed_dicts(hint: Any) -> Iterator[Any]:
    if is_typeddict(hint):
        yield hint
    for argument in () if is_typeddict(hint) else get_args(hint):
        yield from typed_dicts(argument)
