"""The forms of an output that a request may ask for, as types for the OpenAPI document. `form` reads them by hand."""

from __future__ import annotations

from typing import Any

import msgspec


class TextFormat(msgspec.Struct, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(msgspec.Struct, tag_field="type", tag="json_object"):
    pass


class JsonSchemaForm(msgspec.Struct):
    schema: dict[str, Any] | bool
    name: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    json_schema: JsonSchemaForm


class StructuralTagFormat(msgspec.Struct, tag_field="type", tag="structural_tag"):
    """vLLM's; `structures` and `triggers` say where which JSON schema holds."""


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """One of `json`, `regex`, `choice`, `grammar`, `json_object` and `structural_tag`, and how JSON is written."""

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    structural_tag: str | dict[str, Any] | None = None


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat
