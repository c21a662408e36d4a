"""Builds a `tokenizers.Tokenizer` from Mistral's `tekken.json`: byte-level BPE as tiktoken does it.

The file lists tokens as bytes in the order in which they were found, of which the first so many are in use, and special
tokens, whose ids come before all others. Called by `quire.engine.tokenizers.tokenizer`.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from quire.engine.arguments import shown
from quire.engine.errors import ConfigError
from quire.engine.tokenizers.byte_level import BYTE_OF, Recipe, byte_level
from quire.engine.tokenizers.vocabulary import Vocabulary, merges_in_order

_NAMED = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
# Files of version 7 and before do not list their special tokens.
_UNLISTED = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
             "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
             "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]")
_NUM_BYTES = 256


def build(path: Path) -> Vocabulary:
    """The tokenizer in the file at `path`.

    Raises:
        ConfigError: it cannot be read or is malformed.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        config = data["config"]
        num_special = _count(config, "default_num_special_tokens", 2**16)
        num_ranks = _count(config, "default_vocab_size", 2**24) - num_special
        tokens = _tokens(data["vocab"], num_ranks)
        special = _special(data.get("special_tokens"), num_special)
        if both := {text for text, _ in special}.intersection(tokens):
            raise ValueError(f"{min(both)!r} is a special token and another too")
        recipe = Recipe((config["pattern"],), ignore_merges=True)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as a tekken file: {type(error).__name__}: {error}") from error
    ids = {text: i for i, (text, _) in enumerate(special)} | {text: num_special + i for i, text in enumerate(tokens)}
    rust = byte_level(ids, merges_in_order(tokens), recipe)
    rust.add_tokens([AddedToken(text, special=is_control, normalized=False) for text, is_control in special])
    texts = {text for text, _ in special}
    return Vocabulary(rust, {name: text for name, text in _NAMED.items() if text in texts}, add_bos=True)


def _tokens(vocab: list[dict[str, Any]], count: int) -> list[str]:
    """The first `count` tokens, in the alphabet of byte-level BPE."""
    if not _NUM_BYTES <= count <= len(vocab):
        raise ValueError(f"{count} of {len(vocab)} tokens are said to be in use, of which {_NUM_BYTES} are bytes")
    alphabet = {byte: char for char, byte in BYTE_OF.items()}
    tokens = []
    for rank, entry in enumerate(vocab[:count]):
        if entry["rank"] != rank:
            raise ValueError(f"the token in place {rank} has rank {entry['rank']!r}")
        tokens.append("".join(map(alphabet.__getitem__, base64.b64decode(entry["token_bytes"], validate=True))))
    if len(set(tokens)) != count or "" in tokens:
        raise ValueError("it holds a token twice, or an empty one")
    return tokens


def _special(listed: list[dict[str, Any]] | None, count: int) -> list[tuple[str, bool]]:
    """Each special token's text and whether it is a control token, in the order of ids; unnamed ones are filled in."""
    if listed is None:
        listed = [{"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(_UNLISTED)]
    found = {entry["rank"]: (entry["token_str"], bool(entry["is_control"])) for entry in listed}
    if not all(isinstance(text, str) and text for text, _ in found.values()) or found.keys() - range(count):
        raise ValueError(f"a special token has no text, or a rank that is not below {count}")
    special = [found.get(i, (f"<SPECIAL_{i}>", True)) for i in range(count)]
    if len({text for text, _ in special}) != count:
        raise ValueError("it holds a special token twice")
    return special


def _count(config: dict[str, Any], name: str, most: int) -> int:
    value = config[name]
    if type(value) is not int or not 0 < value <= most:
        raise ValueError(f"{name} is {shown(value)}; it must be a number of tokens, {most} at most")
    return value
