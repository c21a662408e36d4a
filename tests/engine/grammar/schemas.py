"""More than 300 JSON schemas of the kinds that JSONSchemaBench counts, with some that llguidance is known to refuse."""

from __future__ import annotations

from itertools import product
from typing import Any

Schema = dict[str, Any]
_TEXTS = ["plain", "with space", "quote\"d", "back\\slash", "tab\tbed", "é", "日本語", "🎉", "</tag>", "a/b~c"]


def strict(**properties: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def schemas() -> dict[str, Schema | bool]:
    return {**_values(), **_strings(), **_numbers(), **_arrays(), **_objects(), **_combined(), **_recursive(),
            **_large()}


def _values() -> dict[str, Schema | bool]:
    found: dict[str, Schema | bool] = {f"type-{kind}": {"type": kind} for kind in
                                       ("string", "integer", "number", "boolean", "null", "object", "array")}
    found |= {f"types-{a}-{b}": strict(x={"type": [a, b]}) for a, b in
              product(("string", "integer", "boolean", "object"), ("null", "number", "array"))}
    found |= {f"const-{i}": strict(x={"const": value}) for i, value in
              enumerate([*_TEXTS, 1, -2.5, True, None, [1, "a"], {"a": {"b": []}}])}
    found |= {f"enum-{i}": strict(x={"enum": values}) for i, values in enumerate([
        _TEXTS, [1, 2, 3], [None, True, "x"], [[1], {"a": 1}], ["a", "ab", "abc", "b"], [0, -0.5, 1e3]])}
    return {**found, "anything": True, "empty": {}}


def _strings() -> dict[str, Schema | bool]:
    found = {f"length-{low}-{high}": strict(x={"type": "string", "minLength": low, "maxLength": high})
             for low, high in ((0, 0), (0, 1), (1, 1), (3, 5), (10, 12), (0, 40))}
    found |= {f"format-{name}": strict(x={"type": "string", "format": name}) for name in
              ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
               "iri", "regex", "json-pointer", "unheard-of")}
    patterns = ["^[a-z]{2,4}$", "^\\d{3}-\\d{4}$", "^(foo|bar)+$", "[0-9]", "^\\w+@\\w+\\.com$", "^é{1,3}$",
                "^[^\"\\\\]{1,3}$", "^(a|b)*c{2}$", "^$", "^\\w{1,4}$", "^(?:[01]?\\d|2[0-3]):[0-5]\\d$", "^(?=a)b$",
                "^.{1,6}$", "^-?\\d+(\\.\\d+)?$", "^#[0-9a-fA-F]{6}$", "a{", "^\\s{0,2}x$"]
    found |= {f"pattern-{i}": strict(x={"type": "string", "pattern": pattern}) for i, pattern in enumerate(patterns)}
    found["pattern-and-length"] = strict(x={"type": "string", "pattern": "^[ab]*$", "minLength": 2, "maxLength": 4})
    return dict(found)


def _numbers() -> dict[str, Schema | bool]:
    bounds: list[Schema] = [
        {"minimum": 0, "maximum": 9}, {"minimum": -5, "maximum": 5}, {"minimum": 100}, {"maximum": -1},
        {"exclusiveMinimum": 0, "exclusiveMaximum": 3}, {"minimum": 17, "maximum": 17}, {"multipleOf": 5},
        {"minimum": 0, "maximum": 100, "multipleOf": 25}, {"minimum": 5, "maximum": 4}]
    return {f"{kind}-{i}": strict(x={"type": kind, **bound}) for kind in ("integer", "number")
            for i, bound in enumerate(bounds)}


def _arrays() -> dict[str, Schema | bool]:
    items: list[Schema] = [{"type": "integer"}, {"type": "string", "maxLength": 3}, {"type": "boolean"},
                           strict(a={"type": "null"}), {"type": "array", "items": {"type": "null"}, "maxItems": 2}]
    found: dict[str, Schema | bool] = {
        f"array-{i}-{low}-{high}": {"type": "array", "items": item, "minItems": low, "maxItems": high}
        for (i, item), (low, high) in product(enumerate(items), ((0, 0), (0, 2), (1, 1), (2, 3)))}
    found |= {
        "tuple": {"type": "array", "prefixItems": [{"type": "string", "maxLength": 2}, {"type": "integer"}],
                  "items": False, "minItems": 2},
        "tuple-open": {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}, "maxItems": 3},
        "unique": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        "contains": {"type": "array", "contains": {"const": 1}},
        "bad-counts": {"type": "array", "minItems": 3, "maxItems": 2},
    }
    return found


def _objects() -> dict[str, Schema | bool]:
    found: dict[str, Schema | bool] = {
        f"object-{n}-{m}": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(n)},
                            "required": [f"p{i}" for i in range(m)], "additionalProperties": False}
        for n, m in ((1, 0), (1, 1), (3, 0), (3, 2), (6, 3), (10, 10))}
    found |= {f"name-{i}": strict(**{text: {"type": "boolean"}}) for i, text in enumerate(_TEXTS)}
    found |= {
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        "map-and-known": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"],
                          "additionalProperties": {"type": "null"}},
        "pattern-names": {"type": "object", "patternProperties": {"^x_": {"type": "integer"}},
                          "additionalProperties": False},
        "required-unknown": {"type": "object", "required": ["z"]},
        "never": strict(a=False),
        "counts": {"type": "object", "additionalProperties": {"const": 0}, "minProperties": 1, "maxProperties": 2},
        "names": {"type": "object", "propertyNames": {"maxLength": 3}},
        "dependent": {"type": "object", "properties": {"a": {}}, "dependentRequired": {"a": ["b"]}},
        "described": {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "T", "description": "d",
                      **strict(a={"type": "integer", "description": "n", "default": 3, "examples": [1]})},
    }
    for depth in (2, 4, 8, 12):
        nested: Schema = {"type": "integer"}
        for level in range(depth):
            nested = strict(**{f"l{level}": nested})
        found[f"nested-{depth}"] = nested
    for depth in (2, 5):
        nested = {"type": "boolean"}
        for _ in range(depth):
            nested = {"type": "array", "items": nested, "minItems": 1, "maxItems": 1}
        found[f"nested-arrays-{depth}"] = nested
    return found


def _combined() -> dict[str, Schema | bool]:
    a, b = strict(kind={"const": "a"}, x={"type": "integer"}), strict(kind={"const": "b"}, y={"type": "boolean"})
    parts: list[Schema] = [{"type": "integer"}, {"type": "string", "maxLength": 2}, {"type": "null"}, a, b]
    found: dict[str, Schema | bool] = {f"{how}-{i}-{j}": {how: [parts[i], parts[j]]}
                                       for how in ("anyOf", "oneOf") for i in range(5) for j in range(i)}
    found |= {f"allOf-{i}": schema for i, schema in enumerate([
        {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 4}]},
        {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                   {"properties": {"b": {"type": "null"}}, "required": ["b"]}]},
        {"allOf": [{"type": "string"}, {"type": "number"}]},
        {"allOf": [a]}, {"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}]}])}
    found |= {
        "not": {"not": {"type": "string"}},
        "if": {"type": "object", "properties": {"a": {"type": "boolean"}}, "if": {"properties": {"a": {"const": True}}},
               "then": {"required": ["b"]}},
        "oneOf-overlapping": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        "nullable": strict(x={"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]}),
        "discriminated": strict(items={"type": "array", "items": {"anyOf": [a, b]}, "minItems": 1, "maxItems": 3}),
    }
    return found


def _recursive() -> dict[str, Schema | bool]:
    node = strict(value={"type": "integer"}, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})
    tree = {"type": "object", "properties": {"n": {"type": "integer"},
                                             "kids": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
            "required": ["n"], "additionalProperties": False}
    return {
        "list": {"$ref": "#/$defs/node", "$defs": {"node": node}},
        "tree": tree,
        "mutual": {"$ref": "#/$defs/a", "$defs": {
            "a": strict(b={"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]}),
            "b": strict(a={"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]})}},
        "definitions": {**strict(x={"$ref": "#/definitions/d"}), "definitions": {"d": {"enum": ["u", "v"]}}},
        "shared": {**strict(x={"$ref": "#/$defs/d"}, y={"$ref": "#/$defs/d"}), "$defs": {"d": {"type": "boolean"}}},
        "endless": {"$ref": "#/$defs/x", "$defs": {"x": {"$ref": "#/$defs/x"}}},
        "always-deeper": {"$ref": "#/$defs/x", "$defs": {"x": strict(x={"$ref": "#/$defs/x"})}},
        "missing-ref": {"$ref": "#/$defs/nowhere"},
        "remote-ref": {"$ref": "https://example.com/schema.json"},
        "pointer": {**strict(a={"type": "integer"}, b={"$ref": "#/properties/a"})},
        "id": {"$id": "https://example.com/s", **strict(a={"type": "boolean"})},
    }


def _large() -> dict[str, Schema | bool]:
    found: dict[str, Schema | bool] = {
        f"wide-{n}": strict(**{f"field_{i}": ({"type": "boolean"}, {"enum": ["x", "y"]}, {"type": "null"})[i % 3]
                               for i in range(n)}) for n in (20, 60)}
    found |= {f"wide-optional-{n}": {"type": "object", "additionalProperties": False,
                                     "properties": {f"f{i}": {"type": "null"} for i in range(n)}} for n in (20, 300)}
    found |= {f"enum-of-{n}": {"enum": [f"value {i}" for i in range(n)]} for n in (50, 500, 5000)}
    found |= {f"anyOf-{n}": {"anyOf": [strict(**{f"k{i}": {"const": i}}) for i in range(n)]} for n in (10, 100)}
    found |= {f"long-pattern-{n}": {"type": "string", "pattern": f"^[a-z]{{{n},{n + 3}}}$"} for n in (10, 50, 2000)}
    for i, (low, high) in enumerate(product((0, 1, 7, 99), (100, 1000, 12345, 10**6, 10**12))):
        found[f"range-{i}"] = {"type": "integer", "minimum": low, "maximum": high}
    for i, (a, b) in enumerate(product(range(1, 10), repeat=2)):
        found[f"mixed-{a}-{b}"] = strict(
            id={"type": "integer", "minimum": i, "maximum": i + a},
            tags={"type": "array", "items": {"enum": _TEXTS[:a]}, "minItems": 1, "maxItems": b % 4 + 1},
            inner=strict(**{f"k{j}": ({"type": "boolean"}, {"type": "null"}, {"const": _TEXTS[j]})[j % 3]
                            for j in range(b)}))
    return found
