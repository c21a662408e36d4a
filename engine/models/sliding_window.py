"""Refuses models whose attention looks back less far than the engine would let a request grow."""

from __future__ import annotations

from quire.engine.errors import ConfigError
from quire.engine.model_config import ModelConfig


def refuse_short_window(config: ModelConfig, max_model_len: int, window: int | None) -> None:
    """A window that no request can outgrow changes nothing; a shorter one would change the output."""
    if window is not None and window < max_model_len:
        raise ConfigError(f"{config.path}: sliding-window attention is not supported, and sliding_window is {window}; "
                          f"use --max-model-len {window} or less (it is {max_model_len})")
