"""The last line of defence for secrets in logs: masks whatever looks like one, wherever in a log line it is.

Nothing of ours logs a key on purpose; this is for the exception text or the header that brings one along. A structlog
processor, placed after tracebacks became text and before the line is written.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

MASK = "***"
_SECRET = re.compile(r"""
    (quire-)[A-Za-z0-9_-]{32,}  # our own keys have 43 characters after it; pods and directories are shorter
    | \b(sk-)[A-Za-z0-9_-]{20,}  # the form of OpenAI's
    | \b((?:authorization|x-api-key)\b["']?\s*[:=,]\s*(?:b?["'])?(?:(?:bearer|basic)\s+)?)[^\s"',;]+
    | \b(bearer\s+)[^\s"',;]+
    """, re.IGNORECASE | re.VERBOSE)
_SECRET_FIELDS = frozenset({"authorization", "proxy-authorization", "api_key", "api-key", "x-api-key", "password",
                            "secret", "token", "cookie"})


def redact(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        event[name] = _redacted(name, value)
    return event


def redacted_text(text: str) -> str:
    return _SECRET.sub(lambda match: next(filter(None, match.groups())) + MASK, text)


def _redacted(name: object, value: Any) -> Any:
    """Plain containers are looked into; of anything else, which a renderer would write by its repr, the repr."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(name, str) and name.lower() in _SECRET_FIELDS:
        return MASK
    if isinstance(value, str):
        return redacted_text(value)
    if isinstance(value, dict):
        return {redacted_text(key) if isinstance(key, str) else key: _redacted(key, inner)
                for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redacted("", inner) for inner in value]
    return redacted_text(repr(value))
