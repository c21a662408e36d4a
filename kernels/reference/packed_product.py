"""Products with weights in 4 or 8 bits. Called by quire.engine.quantization.product through quire.kernels.ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from quire.kernels.packed_weight import BITS, PackedWeight, table, unpacked_codes

_TILE = 256  # outputs that are made floats of at a time, so that they stay in the cache


def packed_product(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """y[m, n] = sum_k x[m, k] w[n, k] + bias[n], w as `unpack` gives it in float32.

    x: [m, k], last dimension contiguous, in the weight's order; bias: [n]. Returns [m, n] of x.dtype. Codes are
    exact in x.dtype; sums, zeros and scales are float32, and multiply sums rather than codes.
    """
    out = x.new_empty((x.shape[0], weight.outputs))
    wide = x.float()
    for start in range(0, weight.outputs, _TILE):
        rows = slice(start, min(start + _TILE, weight.outputs))
        part = F.linear(wide, unpack(weight.rows(rows), torch.float32))
        out[:, rows] = part if bias is None else part + bias[rows]
    return out


def unpack(weight: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    """The weight as a matrix [outputs, size] of `dtype`, each element computed in float32 and rounded once."""
    values = _values(weight)
    num_groups = weight.scales.shape[0]
    whole = F.pad(values, (0, num_groups * weight.group - weight.size))
    grouped = whole.view(weight.outputs, num_groups, weight.group)
    if weight.zeros is not None:
        grouped = grouped - weight.zeros.float().T.unsqueeze(2)
    scales = weight.scales.float().T
    if weight.outer is not None:
        scales = scales * weight.outer.unsqueeze(1)
    return (grouped * scales.unsqueeze(2)).view(weight.outputs, -1)[:, :weight.size].to(dtype)


def _values(weight: PackedWeight) -> torch.Tensor:
    """What the codes stand for: float32 [outputs, size]."""
    codes = unpacked_codes(weight)
    if BITS[weight.kind] == 8:
        return codes.view(torch.int8 if weight.kind == "int8" else torch.float8_e4m3fn).float()
    return codes.float() - 8 if weight.kind == "int4" else table(weight.kind, weight.device)[codes.int()]
