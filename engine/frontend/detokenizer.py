"""Token ids to text, a few at a time; the pieces add up to the text of all of them.

A character is given out when its last byte is there. Linear in the tokens: nothing is decoded twice. Refuses to know
stop strings; called by `quire.engine.frontend.generation`.
"""

from __future__ import annotations

import codecs

from quire.engine.tokenizers.tokenizer import Tokenizer

_UTF8 = codecs.getincrementaldecoder("utf-8")
_MAX_CHARACTER_BYTES = 4


class Detokenizer:
    """Decodes what follows `prompt_token_ids`.

    Where the tokenizer drops the first space of a text, it is the prompt's that is dropped, not the continuation's,
    unless nothing of the prompt is visible.
    """

    __slots__ = ("_after_added", "_drops_space", "_joins_added", "_shown", "_skips_special", "_tokenizer", "_utf8")

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: list[int], skip_special_tokens: bool = True,
                 spaces_between_special_tokens: bool = True, shown: frozenset[int] = frozenset()) -> None:
        """`shown`: special tokens that are not skipped. Spaces between added tokens, special or not, are left out where
        special ones are shown and no space is wanted there, as in vLLM; only tokenizers of whole words put one."""
        self._tokenizer = tokenizer
        self._skips_special = skip_special_tokens
        self._shown = shown
        self._joins_added = tokenizer.spaces_tokens and not (skip_special_tokens or spaces_between_special_tokens)
        self._after_added = bool(prompt_token_ids) and prompt_token_ids[-1] in tokenizer.added_ids
        self._utf8 = _UTF8("replace")
        # A prompt of token ids may end inside a character, whose other bytes then come first in the output.
        self._utf8.decode(b"".join(tokenizer.pieces(prompt_token_ids[-_MAX_CHARACTER_BYTES:], skip_special_tokens)))
        self._drops_space = tokenizer.strips_leading_space and not self._shows(prompt_token_ids)

    def push(self, token_ids: list[int]) -> str:
        """The text that these tokens complete; empty while a character is unfinished."""
        pieces = self._tokenizer.pieces(token_ids, self._skips_special)
        if not self._shown.isdisjoint(token_ids):
            pieces = [piece for i in token_ids for piece in
                      self._tokenizer.pieces([i], self._skips_special and i not in self._shown)]
        if self._joins_added:
            pieces = [self._joined(*one) for one in zip(token_ids, pieces)]
        return self._text(b"".join(pieces), final=False)

    def flush(self) -> str:
        """U+FFFD where the last character never got finished."""
        return self._text(b"", final=True)

    def _text(self, data: bytes, *, final: bool) -> str:
        text = self._utf8.decode(data, final)
        if self._drops_space and text:
            self._drops_space = False
            return text.removeprefix(" ")
        return text

    def _joined(self, token_id: int, piece: bytes) -> bytes:
        """`piece`, without its space where it follows an added token and is one too."""
        is_added = token_id in self._tokenizer.added_ids
        joined, self._after_added = is_added and self._after_added, is_added
        return piece.removeprefix(b" ") if joined else piece

    def _shows(self, token_ids: list[int]) -> bool:
        special = self._tokenizer.special_ids
        return any(not (self._skips_special and i in special) for i in token_ids)
