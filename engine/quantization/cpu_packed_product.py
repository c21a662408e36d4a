"""Products on a CPU with weights as a checkpoint packs them, where our own C reads them. Called by
quire.engine.layers.load."""

from __future__ import annotations

from functools import cache

import structlog
import torch

from quire.kernels import cpu_packed_product as kernel
from quire.kernels import ops
from quire.kernels.launch import is_batch_invariant
from quire.kernels.packed_weight import BITS, PackedWeight, packed

_log = structlog.get_logger(__name__)
_MOST_ROWS = 8  # that the C multiplies together


class CpuPackedProduct:
    """[n, in] -> [n, out]: whole numbers of 4 or 8 bits times float32, inputs and sums in float32."""

    def __init__(self, weight: kernel.LaidOut, order: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._order = order
        self._bias = bias

    @classmethod
    def of(cls, weight: PackedWeight, bias: torch.Tensor | None) -> CpuPackedProduct | None:
        """None where the weight is not on a CPU or of another kind, or this machine has no compiler."""
        if weight.device.type != "cpu" or not kernel.reads(weight) or not is_there():
            return None
        return cls(kernel.lay_out(weight), weight.order, bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows, dtype = x.shape[0], x.dtype
        if self._order is not None:
            x = x.index_select(1, self._order)
        if is_batch_invariant() and rows % _MOST_ROWS:  # fewer rows would be summed in another order
            x = torch.nn.functional.pad(x, (0, 0, 0, -rows % _MOST_ROWS))
        out = kernel.packed_product(x, self._weight)[:rows]
        if self._bias is not None:
            out += self._bias
        return out.to(dtype)

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """Those outputs' weights, as an embedding that shares them has them: int64 [n] -> float32 [n, in]."""
        assert self._order is None
        return self._weight.rows(numbers)


@cache
def is_there() -> bool:
    """Whether this machine can multiply so; says in the log why not."""
    if why_not():
        _log.warning("packed weights are made floats at every step, many times slower", reason=why_not(),
                     advice="install gcc, or leave --quantization out: weights then become floats as they are read")
    return not why_not()


@cache
def why_not() -> str:
    """Why this machine cannot multiply so: no compiler, or what it compiles is wrong. Empty where it can."""
    codes = torch.arange(20 * 36).mul(7).view(20, 36)
    scales, zeros = torch.arange(1, 61).view(3, 20) / 32, torch.arange(60).view(3, 20).to(torch.int8)
    x = torch.arange(11 * 36).remainder(11).sub(5).float().view(11, 36)  # whole numbers: sums are exact
    try:
        for kind in ("int4", "int8"):
            weight = packed(kind, codes.remainder(2 ** BITS[kind]).to(torch.uint8), scales, 12, zeros=zeros)
            for rows in (1, 2, 4, 11):  # the C has a loop of its own for 1, 2, 4 and 8
                found = kernel.packed_product(x[:rows], kernel.lay_out(weight))
                if not torch.equal(found, ops.packed_product(x[:rows], weight, None)):
                    return "the product that was compiled here gives wrong sums"
    except OSError as error:
        return str(error)
    return ""
