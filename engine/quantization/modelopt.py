"""NVIDIA's ModelOpt: FP8 with a scale for a tensor, an output or a block, and NVFP4. The tensors tell which it is."""

from __future__ import annotations

from typing import Any

import torch

from quire.engine.quantization.eight_bits import EightBits
from quire.engine.quantization.small_floats import NvFp4
from quire.engine.weights.checkpoint import View
from quire.engine.weights.scheme import WeightScheme, is_kv_scale

_FP8 = EightBits("e4m3", (128, 128))
_NVFP4 = NvFp4("weight", "weight_scale_2", is_divisor=False)


class ModelOpt:
    def __init__(self, config: dict[str, Any]) -> None:
        self.usual: WeightScheme = _NVFP4 if "NVFP4" in config["quant_algo"] else _FP8

    def of(self, view: View, *, is_layer: bool) -> WeightScheme | None:
        stored: dict[torch.dtype | None, WeightScheme] = {torch.float8_e4m3fn: _FP8, torch.uint8: _NVFP4}
        return stored.get(view.stored_dtype("weight"))

    def ignores(self, name: str) -> bool:
        return is_kv_scale(name)


def schemes(config: dict[str, Any]) -> ModelOpt:
    return ModelOpt(config.get("quantization") or config)
