"""The forms of an output that a request may ask for, as types for the OpenAPI document. `form` reads them by hand."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

import msgspec

from quire.engine.structured_outputs import FIELDS, StructuredOutputsParams


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


_TYPES = get_type_hints(StructuredOutputsParams)
StructuredOutputs = msgspec.defstruct(
    "StructuredOutputs", [(of.name, _TYPES[of.name], of.default) for of in fields(StructuredOutputsParams)
                          if of.name in FIELDS],
    forbid_unknown_fields=True, module=__name__, namespace={"__doc__": (
        "One of `json`, `regex`, `choice`, `grammar`, `json_object` and `structural_tag`, and how JSON is written.")})

ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat
