"""A small byte-level BPE, trained by the `tokenizers` package, for the files that such vocabularies come in."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import regex
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers, trainers

from quire.engine.tokenizers.byte_level import BYTE_OF

TEXTS = [
    "", " ", "   ", "\n\n", "\t x", " a", "a  ", "  the  licensed   work \n", "don't WE'VE it's",
    "1234 5,678.90", "a\r\nb\rc", "naïve café e\u0301", "漢字かな。中文，标点！", "🎉👨‍👩‍👧",
    "\u0000\u0007\u007f", "\u200b\u00a0x\u3000", "aaaaaaaaaaaaaaa", "-----=====", "<s>", "[INST] x",
    "camelCaseHTMLWord snake_case", "def f(x):\n\t\treturn x  # ok\n\n", "ababababab", "한국어 עברית",
]


@cache
def trained() -> RustTokenizer:
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    rust.train_from_iterator([(Path(__file__).parents[3] / "LICENSE").read_text(encoding="utf-8"), *TEXTS], trainer)
    return rust


def in_order() -> list[bytes]:
    """Its tokens as bytes: single ones, then in the order in which they were found."""
    spelled = sorted(trained().get_vocab().items(), key=lambda item: item[1])
    return [bytes(BYTE_OF[c] for c in text) for text, _ in spelled]


def by_definition(text: str, pattern: str) -> list[int]:
    """Ids as tiktoken defines them: of a piece's neighbours those are joined whose joint token was found first."""
    ranks = {token: i for i, token in enumerate(in_order())}
    ids = []
    for match in regex.finditer(pattern, text):
        parts = [bytes([byte]) for byte in match[0].encode()]
        while joints := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
            i = min(joints)[1]
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids
