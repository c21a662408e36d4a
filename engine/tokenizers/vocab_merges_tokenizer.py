"""Builds a `tokenizers.Tokenizer` from `vocab.json` and `merges.txt`: byte-level BPE of the families of GPT-2 and Qwen.

The two files do not say how texts are cut before they are merged up; the tokenizer's class does, which
tokenizer_config.json names, or the model's type. Called by `quire.engine.tokenizers.tokenizer`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from quire.engine.errors import ConfigError
from quire.engine.tokenizers.byte_level import RECIPES, Recipe, byte_level
from quire.engine.tokenizers.vocabulary import Vocabulary

_GPT2, _QWEN2 = RECIPES["gpt-2"], RECIPES["qwen2"]
_MOST_IDS = 2**24
_END = "<|endoftext|>"  # what the classes of both name where nothing else does
_CLASSES = {**dict.fromkeys(("GPT2Tokenizer", "CodeGenTokenizer"), _GPT2),
            **dict.fromkeys(("Qwen2Tokenizer", "Qwen3Tokenizer"), _QWEN2)}
_MODEL_TYPES = {**dict.fromkeys(("gpt2", "gpt_neo", "gptj", "gpt_bigcode", "codegen", "opt", "phi"), _GPT2),
                **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), _QWEN2)}


def is_known(config: dict[str, Any], model_type: str) -> bool:
    """Whether it is known how a tokenizer with this tokenizer_config.json, of a model of this type, cuts texts."""
    return _recipe(config, model_type) is not None


def build(path: Path, config: dict[str, Any], model_type: str) -> Vocabulary:
    """The tokenizer in `path`, a vocab.json, and the merges.txt beside it.

    Raises:
        ConfigError: a file cannot be read or is malformed.
    """
    recipe = _recipe(config, model_type)
    assert recipe is not None
    ids = _ids(path)
    rust = byte_level(ids, _merges(path.with_name("merges.txt")), recipe)
    if recipe is _GPT2 and config.get("add_prefix_space"):  # one at the beginning, not before each piece
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    names = ("bos_token", "eos_token", "unk_token") if recipe is _GPT2 else ("eos_token", "pad_token")
    return Vocabulary(rust, dict.fromkeys(names, _END) if _END in ids else {}, add_bos=False)


def _recipe(config: dict[str, Any], model_type: str) -> Recipe | None:
    name = config.get("tokenizer_class")
    if isinstance(name, str):
        return _CLASSES.get(name.removesuffix("Fast"))
    return _MODEL_TYPES.get(model_type)


def _ids(path: Path) -> dict[str, int]:
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(ids, dict) or not all(type(id) is int and 0 <= id < _MOST_IDS for id in ids.values()):
        raise ConfigError(f"{path}: must hold a JSON object of tokens and their ids.")
    tokens = {id: token for token, id in ids.items()}
    if len(tokens) != len(ids):
        twice = next(token for token, id in ids.items() if tokens[id] != token)
        raise ConfigError(f"{path}: {twice!r} and {tokens[ids[twice]]!r} have the same id, {ids[twice]}.")
    return ids


def _merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    merges = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise ConfigError(f"{path}: line {number} is {line[:80]!r}; it must be two parts with a space between.")
        merges.append((left, right))
    return merges
