"""How many values, fields and lists a body holds, counted before anything is made of them.

A decoder is one call, during which no other thread runs, and takes as long as a body has values. Counting goes piece by
piece instead, and others run in between. Texts may hold whatever they like: only what is outside of them counts.
"""

from __future__ import annotations

from quire.app.errors import ApiError

# Each list or object takes a hundred bytes of memory where two of the body may say so.
MOST_BRACKETS = 2**20
MOST_COMMAS = 2**20
MOST_COLONS = 2**15
# Of fewer bytes, any decoder is done within 2 ms.
SMALL_BYTES = 32 * 2**10
_PIECE_BYTES = 32 * 2**10


def check_structure(raw: bytes) -> None:
    """Raises ApiError (400) for more than a body may hold; what is no JSON counts as it looks."""
    brackets = commas = colons = start = 0
    is_text = False
    while start < len(raw) and len(raw) > SMALL_BYTES:
        end = min(start + _PIECE_BYTES, len(raw))
        piece = raw[start:end]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # what the last backslash escapes belongs to it
            end += 1
            piece = raw[start:end]
        start = end
        spans = piece.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')
        outside = b"".join(spans[is_text::2])
        is_text ^= len(spans) % 2 == 0
        brackets += outside.count(b"[") + outside.count(b"{")
        commas += outside.count(b",")
        colons += outside.count(b":")
        if brackets > MOST_BRACKETS:
            raise _too_much(f"{MOST_BRACKETS} opening brackets")
        if commas > MOST_COMMAS:
            raise _too_much(f"{MOST_COMMAS} values")
        if colons > MOST_COLONS:
            raise _too_much(f"{MOST_COLONS} fields of objects")


def _too_much(what: str) -> ApiError:
    return ApiError(400, f"The request body holds more than {what}. Please send fewer prompts or messages at once.")
