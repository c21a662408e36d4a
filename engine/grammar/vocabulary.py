"""A model's tokens as llguidance wants them: the bytes of each, and which of them end a text.

Made once by each that follows grammars: a front end, which checks them, and the ranks that sample. Takes about 4 us and
120 bytes a token.
"""

from __future__ import annotations

from collections.abc import Iterable

from llguidance import LLTokenizer, TokenizerWrapper

from quire.engine.tokenizers.tokenizer import Tokenizer


class _Tokens:
    """What TokenizerWrapper reads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end: int) -> None:
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        self.special_token_ids = sorted(token for token in tokenizer.special_ids if token < vocab_size)
        self.eos_token_id = end
        self.bos_token_id = tokenizer.bos_token_id
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def grammar_vocabulary(tokenizer: Tokenizer, vocab_size: int, end_token_ids: Iterable[int]) -> LLTokenizer:
    """`vocab_size` is the model's: what lies beyond the tokenizer's is never allowed."""
    ends = list(dict.fromkeys(token for token in end_token_ids if token < vocab_size))
    wrapper = TokenizerWrapper(_Tokens(tokenizer, vocab_size, ends[0]))
    return LLTokenizer(wrapper, n_vocab=vocab_size, eos_token=ends)
