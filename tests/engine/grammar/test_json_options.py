from __future__ import annotations

from typing import Any

import pytest

from quire.engine.grammar.json_options import closed

SHUT = {"additionalProperties": False}


@pytest.mark.parametrize(("schema", "found"), [
    ({"type": "object"}, {"type": "object", **SHUT}),
    ({"properties": {"a": {"type": "object", "properties": {}}}},
     {"properties": {"a": {"type": "object", "properties": {}, **SHUT}}, **SHUT}),
    ({"type": "object", "additionalProperties": {"type": "object"}},
     {"type": "object", "additionalProperties": {"type": "object", **SHUT}}),
    ({"anyOf": [{"type": "object"}, True]}, {"anyOf": [{"type": "object", **SHUT}, True]}),
    # A property of that name, and values that look like schemas.
    ({"properties": {"properties": {"type": "string"}, "type": {"const": "object"}}},
     {"properties": {"properties": {"type": "string"}, "type": {"const": "object"}}, **SHUT}),
    ({"enum": [{"type": "object"}], "default": {"properties": {}}}, {"enum": [{"type": "object"}],
                                                                     "default": {"properties": {}}}),
    (True, True),
])
def test_objects_are_closed_that_do_not_say_otherwise(schema: Any, found: Any) -> None:
    assert closed(schema) == found
