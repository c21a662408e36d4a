"""JSON Schemas of msgspec's types. What is kept as JSON has its true form in them (`quire.app.schemas.described`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from quire.app.openapi.replies import ErrorReply
from quire.app.schemas.described import FORMS, HOLDS


class Schemas:
    """Of types: a reference for each, and the components that references lead to."""

    def __init__(self, types: Iterable[Any]) -> None:
        wanted: list[Any] = [ErrorReply]
        wanted += [form for form in types if form is not None]
        while True:
            found, components = msgspec.json.schema_components(wanted, ref_template="#/components/schemas/{name}")
            held = [FORMS[place] for place in sorted(set(_held((found, components))))]
            new = [form for form in held if form not in wanted]
            if not new:
                break
            wanted += new
        self._wanted, self._found = wanted, list(found)
        self.components = self._opened(components)

    def of(self, form: Any) -> dict[str, Any]:
        schema: dict[str, Any] = self._opened(self._found[self._wanted.index(form)])
        return schema

    def any_of(self, forms: list[Any]) -> dict[str, Any]:
        return self.of(forms[0]) if len(forms) == 1 else {"anyOf": [self.of(form) for form in forms]}

    def _opened(self, schema: Any) -> Any:
        """`schema` with the true form of whatever is kept as JSON."""
        if isinstance(schema, dict):
            if HOLDS in schema:
                said = {name: value for name, value in schema.items() if name in ("description", "default", "title")}
                return self.of(FORMS[schema[HOLDS]]) | said
            return {name: self._opened(value) for name, value in schema.items()}
        return [self._opened(part) for part in schema] if isinstance(schema, list) else schema


def _held(schema: Any) -> Iterator[int]:
    if isinstance(schema, dict):
        if HOLDS in schema:
            yield schema[HOLDS]
        for value in schema.values():
            yield from _held(value)
    elif isinstance(schema, (list, tuple)):
        for part in schema:
            yield from _held(part)
