"""JSON Schemas of the models that check requests, of what they accept and no more; and of what is answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from opsin_server.chat.fields import Neutral, Unread

REF = "#/components/schemas/{}"
ANSWER = "Answer."  # in front of what is answered: some of it is called as what comes in


class RequestSchema(GenerateJsonSchema):
    """With what the house's own validators let pass, and without what says nothing."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        check: Any = schema["function"]["function"]
        if isinstance(check, Neutral):
            return {"enum": [None, *check.accepted]}
        if isinstance(check, Unread):
            return {"description": "Ignored."}
        return super().function_before_schema(schema)

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        found = super().str_schema(schema)
        if "pattern" in found:  # Rust's anchors are not JSON Schema's
            found["pattern"] = found["pattern"].replace(r"\A", "^").replace(r"\z", "$")
        return found

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Null is what is left out."""
        return (
            self.generate_inner(schema["schema"]) if schema.get("default") is None else super().default_schema(schema)
        )

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def request_schemas(models: Sequence[type[BaseModel]]) -> tuple[dict[type[BaseModel], Any], dict[str, Any]]:
    """Where the schema of each is, and all by name."""
    found, shared = models_json_schema(
        [(model, "validation") for model in models], schema_generator=RequestSchema, ref_template=REF.format("{model}")
    )
    places: dict[type[BaseModel], Any] = {model: found[model, "validation"] for model in models}
    return places, shared.get("$defs", {})


def answer_schemas(types: Sequence[type[Any]]) -> tuple[dict[type[Any], Any], dict[str, Any]]:
    found, shared = msgspec.json.schema_components(types, ref_template=REF.format(ANSWER + "{name}"))
    return dict(zip(types, found, strict=True)), {ANSWER + name: schema for name, schema in shared.items()}
