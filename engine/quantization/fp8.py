"""FP8 (e4m3) of quant_method fp8 or fbgemm_fp8: a scale for a tensor, an output, or DeepSeek's and Qwen's blocks.

And `--quantization fp8`, which rounds the floats of any checkpoint as they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quire.engine.quantization.eight_bits import EightBits, rounded_to_e4m3
from quire.engine.weights.checkpoint import View
from quire.engine.weights.scheme import Part, WeightScheme, is_kv_scale
from quire.kernels.packed_weight import PackedWeight


@dataclass(frozen=True)
class Fp8Schemes:
    usual: EightBits

    def of(self, view: View, *, is_layer: bool) -> WeightScheme | None:
        return self.usual if view.stored_dtype("weight") == torch.float8_e4m3fn else None

    def ignores(self, name: str) -> bool:
        return is_kv_scale(name)


class Rounding:
    """The scheme of every layer of the decoder, but of no embedding, head, router or expert."""

    @property
    def usual(self) -> WeightScheme:
        return self

    def of(self, view: View, *, is_layer: bool) -> WeightScheme | None:
        return self if is_layer else None

    def ignores(self, name: str) -> bool:
        return False

    def read(self, view: View, part: Part, in_features: int, columns: slice, *, transposed: bool) -> PackedWeight:
        return rounded_to_e4m3(view.take("weight", (part.num_rows, in_features), rows=part.rows, columns=columns,
                                         transposed=transposed))


def schemes(config: dict[str, Any]) -> Fp8Schemes:
    block = config.get("weight_block_size")
    return Fp8Schemes(EightBits("e4m3", None if block is None else (block[0], block[1])))


def online(config: dict[str, Any]) -> Rounding:
    return Rounding()
