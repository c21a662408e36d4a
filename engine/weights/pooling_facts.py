"""What a checkpoint says of the embeddings that are made of its hidden states: sentence-transformers' modules.json and
the folder of its pooling module, and config.json's word on shorter vectors.

Refuses to know torch and tensors. Called by `quire.engine.weights.hf_config`, and by `gguf_config` for its own form.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from quire.engine.arguments import shown
from quire.engine.errors import ConfigError
from quire.engine.model_config import Pooling
from quire.engine.weights.json_file import read_json

_KINDS = {"lasttoken": "last", "mean": "mean", "mean_tokens": "mean"}  # sentence-transformers' words
_SWITCH = "pooling_mode_"
_BEFORE, _POOLING, _NORMALIZE = "Transformer", "Pooling", "Normalize"
_FOLDER = re.compile(r"\w[\w.-]*")
_GGUF_KINDS = {0: "last", 1: "mean", 3: "last"}  # llama.cpp's numbers: none, mean, first token, last, rank


def pooling(path: Path, hf: dict[str, Any]) -> Pooling:
    """Without modules.json: the last token's hidden state, at length 1.

    Raises:
        ConfigError: the embeddings are made in a way that is not supported, or a file is malformed.
    """
    lengths = _lengths(hf.get("matryoshka_dimensions"))
    can_be_cut = bool(lengths) or hf.get("is_matryoshka") is True
    modules_file = path / "modules.json"
    if not modules_file.is_file():
        return Pooling(can_be_cut=can_be_cut, lengths=lengths)
    modules = read_json(modules_file, list)
    kind, normalize = "last", False
    for module in modules:
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise ConfigError(f"{modules_file}: each module must be an object with a type, one is {shown(module)}")
        name = module["type"].rpartition(".")[2]
        if name == _POOLING:
            kind = _kind(path, module.get("path"))
        elif name == _NORMALIZE:
            normalize = True
        elif name != _BEFORE:
            raise ConfigError(f"{modules_file}: embeddings go through a module {shown(name)}, which is not supported; "
                              f"supported are {_POOLING} and {_NORMALIZE}")
    return Pooling(kind, normalize, can_be_cut, lengths)


def gguf_pooling(path: Path, metadata: dict[str, Any]) -> Pooling:
    """Raises ConfigError where a file's embeddings are made in a way that is not supported."""
    key = f"{metadata.get('general.architecture')}.pooling_type"
    stated = metadata.get(key, 0)
    if stated not in _GGUF_KINDS:
        raise ConfigError(f"{path}: {key} is {shown(stated)}, which is not supported; supported are 1 (mean) and 3 "
                          "(last)")
    return Pooling(_GGUF_KINDS[stated])


def _kind(path: Path, folder: Any) -> str:
    if not isinstance(folder, str) or not _FOLDER.fullmatch(folder):
        raise ConfigError(f"{path / 'modules.json'}: the path of {_POOLING} must name a folder, is {shown(folder)}")
    file = path / folder / "config.json"
    stated = read_json(file, dict)
    named = stated.get("pooling_mode")
    if named is None:
        on = [name.removeprefix(_SWITCH) for name, value in stated.items()
              if name.startswith(_SWITCH) and value is True]
        named = on[0] if len(on) == 1 else "+".join(on)
    if named not in _KINDS:
        raise ConfigError(f"{file}: pooling by {shown(named)} is not supported; supported are lasttoken and mean")
    return _KINDS[named]


def _lengths(stated: Any) -> tuple[int, ...]:
    if stated is None:
        return ()
    if not isinstance(stated, list) or not all(type(length) is int and length > 0 for length in stated):
        raise ConfigError(f"matryoshka_dimensions must be a list of positive integers, is {shown(stated)}")
    return tuple(sorted(set(stated)))
