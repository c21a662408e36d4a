"""Where a model's tokenizer lies, and of what kind it is. Loads none, nor a library that could: the launcher asks
before it starts anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quire.engine.errors import ConfigError
from quire.engine.model_config import ModelConfig

GGUF, JSON, TEKKEN, SENTENCEPIECE, VOCAB_MERGES, OTHER = (
    "gguf", "tokenizer.json", "tekken", "sentencepiece", "vocab.json and merges.txt", "other")
# What a directory may hold, the first that is there counts: tokenizer.json is complete and what most people run, tekken
# is newer than a SentencePiece file beside it, and OTHER is for transformers to know.
_PATTERNS = (("tokenizer.json", JSON), ("tekken.json", TEKKEN), ("tokenizer.model", SENTENCEPIECE),
             ("tokenizer.model.v*", SENTENCEPIECE), ("*.model", SENTENCEPIECE), ("vocab.json", VOCAB_MERGES),
             ("vocab*", OTHER), ("tokenizer.*", OTHER))


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    kind: str
    file: Path  # that holds the vocabulary; of OTHER, any
    directory: Path  # where tokenizer_config.json and chat templates lie


def find_tokenizer(model: ModelConfig, tokenizer: str | None) -> TokenizerFiles:
    """Of `model`, or of what --tokenizer says.

    Raises:
        ConfigError: there is none; the message says what to do.
    """
    path = Path(tokenizer or model.path)
    if path.is_file():
        return TokenizerFiles(_kind_of(path), path, path.parent)
    if not path.is_dir():
        raise ConfigError(f"--tokenizer: {path} is neither a directory nor a file. Download the model's tokenizer "
                          "files and pass their directory.")
    for pattern, kind in _PATTERNS:
        for file in sorted(path.glob(pattern), reverse=True):  # of several versions the last
            if kind is not VOCAB_MERGES or file.with_name("merges.txt").is_file():
                return TokenizerFiles(kind, file, path)
    for file in path.glob("*.tiktoken"):
        raise ConfigError(f"--tokenizer: {file} lists tokens, but not how texts are cut into them. Convert the "
                          "tokenizer to a tokenizer.json and put that beside it.")
    raise ConfigError(f"--tokenizer: {path} holds no tokenizer files (tokenizer.json, tekken.json, tokenizer.model, or "
                      "vocab.json and merges.txt). Download the model's, and put them there or pass their directory.")


def _kind_of(file: Path) -> str:
    """Files may bear names of their own, so the end of a name counts where it tells."""
    name = file.name
    if name.endswith(".gguf"):
        return GGUF
    if name == "vocab.json" and file.with_name("merges.txt").is_file():
        return VOCAB_MERGES
    if name.endswith(".json"):
        return TEKKEN if "tekken" in name else JSON
    if name.endswith(".model") or ".model." in name:
        return SENTENCEPIECE
    raise ConfigError(f"--tokenizer: {file} is of no known kind: a tokenizer.json, a tekken.json, a SentencePiece "
                      "tokenizer.model, a vocab.json beside its merges.txt or a .gguf file. Pass one of these, or the "
                      "directory that holds it.")
