"""A model's tokens as llguidance wants them: the bytes of each, and which of them end a text.

Made once by each that follows grammars: a front end, which checks them, and the ranks that sample. Takes about 5 us and
120 bytes a token.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from llguidance import LLTokenizer, TokenizerWrapper

from quire.engine.tokenizers.tokenizer import Tokenizer

# Sets of tokens that a state allows or forbids as a whole, most of the time: what is in one need not be looked at token
# by token. Many lengths, since a string that nears its maxLength takes all tokens up to one (1.3 ms without, 0.6 with).
_CHARACTER = r'[^"\\\x00-\x1F\x7F]'  # of a JSON string
_SLICES = [r"[\x20\x0A\x0D\x09]+", *(f"{_CHARACTER}{{1,{most}}}" for most in (1, 2, 3, 4, 5, 6, 7, 8, 10, 15, 30)),
           f"{_CHARACTER}+"]
_BREAK = "\n"  # joins no token with what follows


class _Tokens:
    """What TokenizerWrapper reads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end: int) -> None:
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        self.special_token_ids = sorted(token for token in tokenizer.special_ids if token < vocab_size)
        self.eos_token_id = end
        self.bos_token_id = tokenizer.bos_token_id
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        """Tokens that spell the text as it goes on within another, without the space that some tokenizers put in front:
        llguidance panics where they spell anything else."""
        ids = self._encode(text)
        if self._spells(ids, text):
            return ids
        before = self._encode(_BREAK)
        ids = self._encode(_BREAK + text)
        inner = ids[len(before):]
        if ids[:len(before)] == before and self._spells(inner, text):
            return inner
        return self._longest_first(text.encode())

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _spells(self, ids: list[int], text: str) -> bool:
        return b"".join([self.tokens[token] for token in ids if token < len(self.tokens)]) == text.encode()

    def _longest_first(self, text: bytes) -> list[int]:
        """Up to the first byte that no token has."""
        found, start = [], 0
        while start < len(text):
            ends = range(min(len(text), start + self._longest), start, -1)
            token = next((self._by_bytes[text[start:end]] for end in ends if text[start:end] in self._by_bytes), None)
            if token is None:
                break
            found.append(token)
            start += len(self.tokens[token])
        return found

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {spelled: token for token, spelled in enumerate(self.tokens) if spelled and token not in special}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_bytes))


def grammar_vocabulary(tokenizer: Tokenizer, vocab_size: int, end_token_ids: Iterable[int]) -> LLTokenizer:
    """`vocab_size` is the model's: what lies beyond the tokenizer's is never allowed."""
    ends = list(dict.fromkeys(token for token in end_token_ids if token < vocab_size))
    wrapper = TokenizerWrapper(_Tokens(tokenizer, vocab_size, ends[0]))
    return LLTokenizer(wrapper, n_vocab=vocab_size, eos_token=ends, slices=_SLICES)
