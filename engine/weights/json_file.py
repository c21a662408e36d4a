"""JSON of a model's directory, which may be anybody's. Called by `hf_config` and `pooling_facts`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quire.engine.errors import ConfigError

_NAMES = {dict: "JSON object", list: "list"}


def read_json(path: Path, kind: type[dict[str, Any]] | type[list[Any]] = dict) -> Any:
    """Raises ConfigError where the file cannot be read or holds another type."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise ConfigError(f"{path}: must hold a {_NAMES[kind]}, holds {type(value).__name__}")
    return value
