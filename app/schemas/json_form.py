"""What a field holds whose JSON is kept as it came, or made beforehand. It is said beside the field, for the OpenAPI
document: `Annotated[msgspec.Raw, json_of(ChatChoice)]` decodes and encodes as `msgspec.Raw` does.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin

import msgspec

HOLDS = "x-holds"  # in a schema: the place of its true form in `FORMS`; never in the finished document
FORMS: list[Any] = []


def json_of(form: Any) -> msgspec.Meta:
    """Says that the JSON is that of a `form`, which is any type that msgspec describes."""
    if form not in FORMS:
        FORMS.append(form)
    return msgspec.Meta(extra_json_schema={HOLDS: FORMS.index(form)})


def is_raw(annotation: Any) -> bool:
    """Whether a field of this type keeps its JSON."""
    bare = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return bare is msgspec.Raw
