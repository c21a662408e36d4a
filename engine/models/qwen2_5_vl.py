"""Qwen2.5-VL: Qwen2 with images, whose tower looks through windows in most layers."""

from __future__ import annotations

from quire.engine.models.qwen2 import Qwen2


class Qwen25VL(Qwen2):
    pass
