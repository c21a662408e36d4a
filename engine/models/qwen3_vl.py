"""Qwen3-VL: Qwen3 with images, whose features of several depths are added behind the first layers (DeepStack)."""

from __future__ import annotations

from quire.engine.models.qwen3 import Qwen3


class Qwen3VL(Qwen3):
    pass
