"""What an endpoint takes, gives and refuses: stated once, on its function, by `@operation`.

Knows nothing of HTTP's middleware and of how a document is made of it (`quire.app.openapi.document`). Stating costs an
import of the types and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

E = TypeVar("E", bound=Callable[..., Any])

JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"

# Statuses by what an endpoint does; those of keys and of the connection are any endpoint's (`replies`).
READS_BODY = frozenset({413, 415})
NAMES_MODEL = frozenset({404})
NAMES_PORT = frozenset({404})  # what is on the admin port is on no other
GENERATES = READS_BODY | NAMES_MODEL | {429, 504}


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    summary: str
    tag: str
    takes: Any = None  # type of the body; None: it has none
    example: dict[str, Any] = {}  # of such a body
    gives: Any = None  # type of the JSON reply; None: the reply is of `other_media` alone
    status: int = 200
    # Other forms of the reply: media type -> type of an event or a line, or None for text that is not JSON.
    other_media: dict[str, Any] = {}
    refuses: frozenset[int] = frozenset()
    error: Any = None  # type of a refusal; None: OpenAI's
    other_replies: dict[int, Any] = {}  # status -> a type beside the error's
    description: str = ""
    has_etag: bool = False  # so that it may be 304
    is_listed: bool = True  # in the document; a page's files are no API

    @property
    def has_deadlines(self) -> bool:
        """Whether it heeds the headers that `quire.app.deadlines` reads."""
        return 504 in self.refuses


_STATED: dict[Callable[..., Any], Operation] = {}


def operation(summary: str, tag: str, **stated: Any) -> Callable[[E], E]:
    """Decorates an endpoint; `stated` are fields of `Operation`. The function stays as it is."""
    of = Operation(summary=summary, tag=tag, **stated)

    def note(endpoint: E) -> E:
        _STATED[endpoint] = of
        return endpoint

    return note


def operation_of(endpoint: Callable[..., Any]) -> Operation | None:
    """What was stated of `endpoint`; None: nothing."""
    return _STATED.get(endpoint)
