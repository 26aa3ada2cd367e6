"""The form that a request wants its answer in: free text, or JSON of a schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .fields import Ignored, Strict
from .task import Schema

SchemaField = Annotated[dict[str, Any], Field(alias="schema")]


class FreeText(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObject(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    """A JSON schema; always enforced, strict or not."""

    name: str
    schema_: SchemaField
    description: Ignored = None
    strict: Ignored = None


class JsonSchema(Strict):
    """JSON of a schema, as Chat Completions wants it."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class FlatSchema(Strict):
    """JSON of a schema, as Responses and Messages want it; always enforced, strict or not."""

    type: Literal["json_schema"]
    schema_: SchemaField
    name: Ignored = None
    description: Ignored = None
    strict: Ignored = None


AnswerFormat = Annotated[FreeText | JsonObject | JsonSchema, Field(discriminator="type")]
TextFormat = Annotated[FreeText | JsonObject | FlatSchema, Field(discriminator="type")]


def schema_of(
    given: FreeText | JsonObject | JsonSchema | FlatSchema | None, field: str
) -> Schema | None:
    """The schema that an answer has to follow; None for free text.

    Args:
        given: The form.
        field: Its place in the request.
    """
    if isinstance(given, JsonObject):
        return Schema(field, {"type": "object"})
    if isinstance(given, JsonSchema):
        return Schema(f"{field}.json_schema.schema", given.json_schema.schema_)
    if isinstance(given, FlatSchema):
        return Schema(f"{field}.schema", given.schema_)
    return None
