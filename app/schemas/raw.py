"""JSON that a body keeps as it came: what a value is, without decoding more of it than is asked about."""

from __future__ import annotations

import msgspec

from quire.app.schemas.body import decode_field

NULL = msgspec.Raw(b"null")
_TEXT = msgspec.json.Decoder(str)
_NOTHING = frozenset({b"null", b"false", b"0", b"0.0", b'""', b"[]", b"{}"})
_MOST_NOTHING_BYTES = 20


def text_of(raw: msgspec.Raw | None, where: str) -> str | None:
    """None where it is no text."""
    return decode_field(where, _TEXT, raw) if raw is not None and begins(raw, b'"') else None


def says_something(raw: msgspec.Raw | None) -> bool:
    """Whether it is there, and more than null, false, zero or empty."""
    if raw is None or len(raw) > _MOST_NOTHING_BYTES:
        return raw is not None
    return bytes(raw).translate(None, b" \t\r\n") not in _NOTHING


def begins(raw: msgspec.Raw, with_: bytes) -> bool:
    return bytes(memoryview(raw)[:1]) == with_


def shown_json(raw: msgspec.Raw | None) -> str:
    """A value as an error names it, in JSON."""
    text = bytes(memoryview(NULL if raw is None else raw)[:51]).decode(errors="replace")
    shown = text if len(text) <= 50 else text[:50] + "..."
    return "'" + shown.strip('"') + "'" if text.startswith('"') else shown
