"""What the OpenAPI document tells of a field beyond its type, said beside the field. Reading and writing do not look at
it: `Annotated[msgspec.Raw, json_of(ChatChoice)]` is decoded and encoded as `msgspec.Raw` is.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin

import msgspec

HOLDS = "x-holds"  # in a schema: the place of its true form in `FORMS`; never in the finished document
FORMS: list[Any] = []


def json_of(form: Any) -> msgspec.Meta:
    """The JSON that is kept as it came, or made beforehand, is that of a `form`: any type that msgspec describes."""
    if form not in FORMS:
        FORMS.append(form)
    return msgspec.Meta(extra_json_schema={HOLDS: FORMS.index(form)})


def about(text: str) -> msgspec.Meta:
    """What the field is for, in a sentence or two."""
    return msgspec.Meta(description=text)


def within(low: float | None = None, high: float | None = None, *, above: float | None = None) -> msgspec.Meta:
    """A number from `low` to `high`, or greater than `above`: those that are not refused, as a test sees to."""
    bounds = {"minimum": low, "maximum": high, "exclusiveMinimum": above}
    return msgspec.Meta(extra_json_schema={name: bound for name, bound in bounds.items() if bound is not None})


def one_of(*values: str) -> msgspec.Meta:
    """One of these texts: those that are not refused."""
    return msgspec.Meta(extra_json_schema={"enum": list(values)})


def is_raw(annotation: Any) -> bool:
    """Whether a field of this type keeps its JSON."""
    bare = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return bare is msgspec.Raw
