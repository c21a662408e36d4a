"""What a body holds is counted without being decoded, and texts may hold anything."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.app.errors import ApiError
from quire.app.schemas import structure
from quire.app.schemas.structure import check_structure

TEXTS = st.text(st.sampled_from('"\\[]{},:a\u00e9'), max_size=30)
VALUES = st.recursive(st.one_of(st.integers(), TEXTS), lambda inner: st.one_of(
    st.lists(inner, max_size=5), st.dictionaries(TEXTS, inner, max_size=5)), max_leaves=30)


def counts(value: Any) -> tuple[int, int, int]:
    """Brackets, commas, colons."""
    if not isinstance(value, (dict, list)):
        return 0, 0, 0
    inner = [counts(item) for item in (value.values() if isinstance(value, dict) else value)]
    return (1 + sum(found[0] for found in inner), max(0, len(value) - 1) + sum(found[1] for found in inner),
            (len(value) if isinstance(value, dict) else 0) + sum(found[2] for found in inner))


@settings(max_examples=200, deadline=None)
@given(value=VALUES, piece=st.integers(1, 9), ascii=st.booleans())
def test_exactly_what_is_outside_of_texts_is_counted(value: Any, piece: int, ascii: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structure, "SMALL_BYTES", 0)
        patch.setattr(structure, "_PIECE_BYTES", piece)
        for name, count in zip(("MOST_BRACKETS", "MOST_COMMAS", "MOST_COLONS"), counts(value)):
            with pytest.MonkeyPatch.context() as one:
                one.setattr(structure, name, count)
                check_structure(raw)
                one.setattr(structure, name, count - 1)
                with pytest.raises(ApiError):
                    check_structure(raw)


def test_what_is_no_json_is_left_to_the_decoder() -> None:
    for raw in (b'"' * 100_000, b"\\" * 100_001, b"\xff" * 100_000, b'{"a":"' + b"[" * 2_000_000):
        check_structure(raw)
