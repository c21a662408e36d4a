"""Qwen2-VL: Qwen2 with images, whose tower sees each whole."""

from __future__ import annotations

from quire.engine.models.qwen2 import Qwen2


class Qwen2VL(Qwen2):
    pass
