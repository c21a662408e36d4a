"""Grammars over vocabularies whose tokenizer puts a space in front of each text."""

from __future__ import annotations

import pytest
from llguidance import LLMatcher

from quire.engine.grammar.limits import LIMITS
from quire.engine.grammar.vocabulary import grammar_vocabulary
from quire.engine.tokenizers.tokenizer import Tokenizer

REGEXES = [" {1,4}he", " (a|h)", " {1,3}", "he", " he", "hello a hell\\n\\n a", "\\n\\n he", "h"]


@pytest.mark.parametrize("regex", REGEXES)
def test_what_must_come_is_spelled_without_a_space_in_front(regex: str, sentencepiece: Tokenizer) -> None:
    """llguidance panicked where a grammar left no choice but a space."""
    size = sentencepiece.vocab_size
    matcher = LLMatcher(grammar_vocabulary(sentencepiece, size, [2]), LLMatcher.grammar_from_regex(regex),
                        limits=LIMITS, log_level=0)
    written = b""
    while not matcher.is_stopped():
        bits = matcher.compute_bitmask()
        assert not matcher.is_error(), matcher.get_error()
        token = next(token for token in range(size) if bits[token // 8] >> token % 8 & 1)
        matcher.consume_token(token)
        written += b"" if token == 2 else sentencepiece.token_bytes(token)
    whole = LLMatcher(grammar_vocabulary(sentencepiece, size, [2]), LLMatcher.grammar_from_regex(regex))
    assert whole.try_consume_tokens([3 + byte for byte in written]) == len(written)
    assert whole.is_accepting()
