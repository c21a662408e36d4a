"""Which texts a regular expression of a caller's allows: digits are 0 to 9, however they are asked for."""

from __future__ import annotations

from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from quire.engine.grammar.source import grammar_of
from quire.engine.structured_outputs import StructuredOutputsParams

ARABIC_FIVE = "\u0665"


def allows(form: dict[str, Any], text: str) -> bool:
    matcher = LLMatcher(LLTokenizer("byte"), grammar_of(StructuredOutputsParams(**form), {}), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(("pattern", "allowed", "refused"), [
    (r"\d{3}", ["123"], [ARABIC_FIVE * 3, "12"]), (r"\D", ["a", ARABIC_FIVE], ["5"]),
    (r"[\d.]+", ["3.5"], [ARABIC_FIVE]), (r"[^\d]", ["a", ARABIC_FIVE], ["5"]), (r"[a-f\d-]+", ["a-5"], ["g"]),
    (r"\\d", [r"\d"], ["5", r"\5"]), (r"[\]\d]+", ["]5"], ["\\"]), (r"\w", ["5", "\u00e9"], ["."]),
])
def test_digits_are_those_of_ascii(pattern: str, allowed: list[str], refused: list[str]) -> None:
    forms: list[dict[str, Any]] = [
        {"regex": pattern}, {"structural_tag": {"format": {"type": "regex", "pattern": pattern}}}]
    for form in forms:
        assert [text for text in [*allowed, *refused] if allows(form, text)] == allowed
