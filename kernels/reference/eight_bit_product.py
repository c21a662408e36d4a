"""Products of two matrices of 8 bits. Called by quire.engine.quantization.product through quire.kernels.ops, on a GPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from quire.kernels.packed_weight import PackedWeight, packed_codes
from quire.kernels.reference.packed_product import unpack

MOST: dict[str, float] = {"e4m3": 448.0, "int8": 127.0}
LEAST_SCALE = 1e-12  # of a row of zeros


def round_rows(x: torch.Tensor, kind: Literal["int8", "e4m3"], group: int, words: int
               ) -> tuple[torch.Tensor, torch.Tensor]:
    """Each group of a row, `group` elements from a multiple of it on, by its own scale: largest / MOST[kind].

    x: [m, k], last dimension contiguous. Returns codes, int32 [m, whole runs of `words`] as a PackedWeight has them,
    and scales, float32 [m, groups]. To the nearest number of the kind, of two the even one.
    """
    num_rows, size = x.shape
    padded = torch.nn.functional.pad(x.float(), (0, -size % group)).view(num_rows, -1, group)
    scales = (padded.abs().amax(2) / MOST[kind]).clamp(min=LEAST_SCALE)
    scaled = (padded / scales.unsqueeze(2)).view(num_rows, -1)[:, :size].clamp(-MOST[kind], MOST[kind])
    codes = scaled.round().to(torch.int8) if kind == "int8" else scaled.to(torch.float8_e4m3fn)
    return packed_codes(codes.view(torch.uint8), 8, words), scales


def eight_bit_product(codes: torch.Tensor, scales: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None,
                      dtype: torch.dtype) -> torch.Tensor:
    """y[m, n] = sum_k x[m, k] w[n, k] + bias[n], with x as `round_rows` made it, in the weight's groups.

    Returns [m, n] of `dtype`. Sums of a group are exact for int8, and for e4m3 in float32 at least every 128 elements.
    """
    groups = scales.shape[1]
    rounded = PackedWeight(weight.kind, codes, scales.T, weight.size, weight.words, weight.group)
    x = unpack(replace(rounded, group=weight.size if groups == 1 else weight.group), torch.float32)
    out = x @ unpack(weight, torch.float32).T
    return (out if bias is None else out + bias.float()).to(dtype)
