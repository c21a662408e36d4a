"""How JSON is written in all grammars: what llguidance is told beside a schema."""

from __future__ import annotations

from typing import Any

# Where a schema holds schemas: by names of their own, several, one.
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
SINGLE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames",
          "unevaluatedItems", "unevaluatedProperties")

# Between the parts of a JSON text: enough to indent it. Without a limit, some models write white space for ever.
_WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,64}"


def json_options(*, is_compact: bool = False, white_space: str | None = None) -> dict[str, Any]:
    """In place of whatever "x-guidance" in the schema says."""
    options: dict[str, Any] = ({"whitespace_flexible": False} if is_compact else
                               {"whitespace_pattern": white_space or _WHITE_SPACE})
    return options | {"lenient": False, "coerce_one_of": False}


def closed(schema: Any) -> Any:
    """The same, in which objects that name properties have no others, unless they say that they may."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: {key: closed(part) for key, part in value.items()} if name in MAPS and isinstance(value, dict) else
             closed(value) if name in (*LISTS, *SINGLE) else value for name, value in schema.items()}
    if "properties" in inner or inner.get("type") == "object":
        inner.setdefault("additionalProperties", False)
    return inner
