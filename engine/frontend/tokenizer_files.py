"""Where a model's tokenizer lies. Loads none, nor a library that could: the launcher asks before it starts anything."""

from __future__ import annotations

from pathlib import Path

from quire.engine.errors import ConfigError
from quire.engine.model_config import ModelConfig

_FILES = ("tokenizer.*", "vocab*", "*.model", "tekken.json")  # one of them is there, whatever the tokenizer's kind


def tokenizer_path(model: ModelConfig, tokenizer: str | None) -> Path:
    """A .gguf file, or a directory with tokenizer files: of `model`, or of what --tokenizer says.

    Raises:
        ConfigError: there is none; the message says what to do.
    """
    path = Path(tokenizer or model.path)
    if path.suffix == ".gguf" and path.is_file():
        return path
    if path.name == "tokenizer.json":
        path = path.parent
    if not path.is_dir():
        raise ConfigError(f"--tokenizer: {path} is not a directory, a tokenizer.json or a .gguf file. Download the "
                          "model's tokenizer files and pass their directory.")
    if not any(any(path.glob(pattern)) for pattern in _FILES):
        raise ConfigError(f"--tokenizer: {path} holds no tokenizer files (tokenizer.json, tokenizer.model or "
                          "vocab.json). Download the model's, and put them there or pass their directory.")
    return path
