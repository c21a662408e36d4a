"""What the readers of the several kinds of tokenizer files return, and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import processors

# Every cut of a token is looked at, so a long one costs the square of its length. Published ones have 256 characters.
_MAX_TOKEN_CHARS = 1024


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer, and what its file says of it."""

    rust: RustTokenizer  # nothing is put around its texts yet
    special_tokens: dict[str, str]  # "bos_token" and its like, where stated
    add_bos: bool
    add_eos: bool = False
    num_tokens: int | None = None  # where not all of them are in `rust`
    chat_templates: dict[str, str] = field(default_factory=dict)  # by name


def ids_of(tokens: list[str]) -> dict[str, int]:
    return {token: i for i, token in reversed(list(enumerate(tokens)))}  # of equal texts the first id counts


def merges_in_order(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """The merges of a BPE that joins the two neighbours whose joint token comes first in `tokens`: each cut of a token
    into two others is one.

    Raises:
        ValueError: a token is too long.
    """
    known = frozenset(tokens)
    merges = []
    for token in tokens:
        if len(token) > _MAX_TOKEN_CHARS:
            raise ValueError(f"a token has {len(token)} characters, {token[:32]!r}...; at most {_MAX_TOKEN_CHARS} are "
                             "allowed")
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in known and right in known:
                merges.append((left, right))
    return merges


def surround(rust: RustTokenizer, bos: str | None, eos: str | None) -> None:
    """Have `rust` put these tokens before and after a text."""
    before, after = ([] if text is None else [text] for text in (bos, eos))
    if before or after:
        rust.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], pair=[*before, "$A", *after, *before, "$B", *after],
            special_tokens=[(text, rust.token_to_id(text)) for text in {*before, *after}])
