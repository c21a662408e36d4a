"""Which of a repository's files are read, and so fetched: decided from their names, for every hub alike.

Refuses to know hubs and what the files say. Called by `hub`; `locate` asks it for the GGUF models of a directory.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from quire.engine.errors import ConfigError
from quire.engine.weights.gguf_parts import part_names

# Beside the weights: configuration and the text side, all small. Training's own logs may be large.
_SMALL = ("*.json", "*.jinja", "*.model", "*.tiktoken", "tokenizer.model.*", "merges.txt", "vocab.txt",
          "additional_chat_templates/*.jinja", "*_Pooling/config.json")
_NOT_SMALL = ("*.index.json", "trainer_state.json")
_PART = re.compile(r"-(\d+)-of-(\d+)(\.[^.]+)$")
_NO_MODEL = re.compile(r"(^|/)(mmproj|imatrix)[^/]*$")  # vision projectors and notes of a quantisation, in GGUF too
_NAMED = 20  # files that an error names at most


def wanted_files(names: Iterable[str], load_format: str = "auto", gguf: str | None = None) -> list[str]:
    """Those of `names` that are read: a GGUF file's parts in order, or configuration, tokenizer and weights.

    Safetensors if there are any, else pytorch_model.bin, else the only GGUF file; `gguf` (a file, or a quantisation
    such as Q4_K_M) asks for one. The same weights in other formats and other folders are left, and so are names that
    lead out of the repository.

    Raises:
        ConfigError: there is nothing to read, or nobody said which of several GGUF files; says what there is.
    """
    names = sorted(name for name in names if _is_inside(name))
    if gguf is not None:
        return chosen_gguf(names, gguf)
    small = [name for name in names if _matches(name, _SMALL) and not _matches(name, _NOT_SMALL)]
    if "config.json" in names and load_format == "dummy":
        return small
    if "config.json" in names and load_format != "gguf":
        for stem in ("model.safetensors", "pytorch_model.bin")[:1 if load_format == "safetensors" else 2]:
            if weights := _weights(names, stem):
                return small + weights
    if load_format == "safetensors" or not gguf_models(names):
        raise ConfigError("it holds no config.json with model.safetensors or pytorch_model.bin (or their parts and "
                          f"index), and no GGUF file; it holds {_listed(names)}")
    return chosen_gguf(names, None)


def gguf_models(names: Iterable[str]) -> dict[str, list[str]]:
    """The GGUF models among `names`: the first file of each, and all its parts in order."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.endswith(".gguf") and not _NO_MODEL.search(name):
            models.setdefault(part_names(name)[0], []).append(name)
    return models


def chosen_gguf(names: Iterable[str], choice: str | None) -> list[str]:
    """The parts of the GGUF model `choice`, a file or a quantisation; of the only one if nothing is chosen.

    Raises:
        ConfigError: there is none, there are several, or a part is missing.
    """
    models = gguf_models(names)
    if choice is None:
        found = list(models)
    elif choice.endswith(".gguf"):
        found = [first for first, parts in models.items() if choice in (first, *parts)]
    else:
        found = [first for first in models if _is_quantised(first, choice)]
    if not models:
        raise ConfigError("it holds no GGUF file")
    if len(found) != 1:
        problem = "it holds several GGUF files" if choice is None else (
            f"several of its GGUF files are {choice}" if found else f"none of its GGUF files is {choice}")
        raise ConfigError(f"{problem}; name one, as org/name:Q4_K_M or org/name/FILE, of: "
                          f"{_listed(found or list(models))}")
    parts, all_parts = models[found[0]], part_names(found[0])
    if missing := [part for part in all_parts if part not in parts]:
        raise ConfigError(f"it lacks {_listed(missing)}, of the {len(all_parts)} parts of {found[0]}")
    return parts


def _weights(names: list[str], stem: str) -> list[str]:
    """The file `stem`, or the parts that an index names and the index; as the readers look for them."""
    index, suffix = f"{stem}.index.json", stem[stem.rindex("."):]
    if index not in names:
        return [stem] if stem in names else []
    files = [name for name in names if name.endswith(suffix) and "/" not in name
             and not name.startswith(("consolidated", "adapter_"))]
    parts = [name for name in files if _PART.search(name)]  # beside them a whole file may lie, which is not read
    return [index, *(parts or files)]


def _is_quantised(file: str, quantisation: str) -> bool:
    """Whether the file's name, or that of its folder, ends so: Q4_K_M, in model-Q4_K_M.gguf and Q4_K_M/model.gguf."""
    folder, _, name = file.rpartition("/")
    stem = _PART.sub(r"\3", name).removesuffix(".gguf")
    wanted = re.compile(rf"(^|[-._/]){re.escape(quantisation)}$", re.IGNORECASE)
    return wanted.search(stem) is not None or wanted.search(folder) is not None


def _is_inside(name: str) -> bool:
    """Whether a file of that name would lie in the repository's own folder: not all clients look."""
    return name.isprintable() and not {"", ".."}.intersection(re.split(r"[/\\]", name))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    """A pattern without a folder is one of files that lie in none."""
    return any(fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def _listed(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
