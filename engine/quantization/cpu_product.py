"""Products on a CPU with weights in fewer bits than float32, by the operators of FBGEMM that torch brings.

A CPU that computes for few requests waits for weights to come from memory: half the bytes take about half the time.
Inputs, sums and results stay float32. Called by quire.engine.layers.product and quire.engine.layers.load;
`--cpu-weights` asks for it.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import cache

import torch

from quire.engine.errors import ConfigError
from quire.engine.quantization_config import FLOAT16, FLOAT32
from quire.kernels import ops
from quire.kernels.packed_weight import PackedWeight

MOST = 127  # of a weight's whole number
# Inputs are whole numbers of 14 bits in two halves of 7. Without VNNI a CPU adds two products in 16 bits: with an input
# of 8 bits that overflows, with one of up to 128 after the shift by HALF it never does.
HALF = 64
_LEAST = 1e-30  # the largest input of a row of zeros
_ENGINE = "fbgemm"


class HalfProduct:
    """[n, in] -> [n, out]: weights rounded to float16, multiplied as float32. `weight`: float32 [out, in]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        _use_fbgemm()
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        self._product = torch.ops.quantized.linear_dynamic_fp16.default

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x, self._packed)


class EightBitProduct:
    """[n, in] -> [n, out]: weights are whole numbers of 8 bits with a scale for each output, inputs whole numbers of 14
    bits with a scale for each row. Sums are exact, so a row's result is the same to the bit in any batch.

    `codes`: int8 [out, in]; `scales`: float32 [out].
    """

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
        _use_fbgemm()
        zeros = torch.zeros(len(scales), dtype=torch.long)
        with warnings.catch_warnings():  # torch means to move these types elsewhere
            warnings.simplefilter("ignore")
            weight = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
        self._packed = torch.ops.quantized.linear_prepack(weight, None)
        self._product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        self._bias = bias

    @classmethod
    def of_floats(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> EightBitProduct:
        """`weight`: float32 [out, in]; each row is rounded by its own largest."""
        scales = (weight.abs().amax(1) / MOST).clamp_(min=_LEAST)
        return cls((weight / scales.unsqueeze(1)).round_().to(torch.int8), scales, bias)

    @classmethod
    def of_packed(cls, weight: PackedWeight, bias: torch.Tensor | None) -> EightBitProduct | None:
        """The numbers as the checkpoint has them; None where it has other than one scale for each output."""
        if weight.kind != "int8" or len(weight.scales) > 1 or weight.zeros is not None or weight.order is not None:
            return None
        plain = replace(weight, scales=torch.ones_like(weight.scales), outer=None)
        scales = weight.scales[0].float()
        if weight.outer is not None:
            scales = scales * weight.outer
        return cls(ops.unpack(plain, torch.float32).to(torch.int8), scales, bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0]
        largest = torch.linalg.vector_norm(x, math.inf, 1, keepdim=True).clamp_(min=_LEAST)
        halves = x.new_empty((2 * rows, x.shape[1]))
        high, low = halves[:rows], halves[rows:]
        torch.mul(x, HALF / largest, out=low)
        torch.round(low, out=high)
        low.sub_(high).mul_(2 * HALF)  # from -64 to 64 again; the operator rounds it
        sums = self._product(halves, 1.0, HALF, self._packed)
        out = sums[:rows].add_(sums[rows:], alpha=1 / (2 * HALF)).mul_(largest / HALF)
        return out if self._bias is None else out.add_(self._bias)


def cpu_product(weight: torch.Tensor, bias: torch.Tensor | None, form: str) -> HalfProduct | EightBitProduct:
    """`weight`: float32 [out, in], on a CPU; `form`: FLOAT16 or INT8."""
    return HalfProduct(weight, bias) if form == FLOAT16 else EightBitProduct.of_floats(weight, bias)


@cache
def require(form: str) -> None:
    """Multiplies on this machine and compares.

    Raises:
        ConfigError: this torch has no such operator, or it computes wrongly here.
    """
    if _ENGINE not in torch.backends.quantized.supported_engines:
        raise ConfigError(f"--cpu-weights: {form} needs FBGEMM, which torch {torch.__version__} on this machine is "
                          f"built without; use {FLOAT32}")
    weight, x = _extremes(48, 160, MOST), _extremes(5, 160, 8 * HALF)
    try:
        found = cpu_product(weight, None, form)(x)
    except (RuntimeError, AttributeError) as error:
        raise ConfigError(f"--cpu-weights: {form} does not work with torch {torch.__version__} on this machine: "
                          f"{(str(error).splitlines() or [''])[0]}; use {FLOAT32}") from error
    right = x.double() @ weight.double().T
    if not (found.double() - right).norm() < 1e-4 * right.norm():
        raise ConfigError(f"--cpu-weights: {form} gives wrong sums with torch {torch.__version__} on this machine; use "
                          f"{FLOAT32}")


def _extremes(rows: int, columns: int, most: int) -> torch.Tensor:
    """Whole numbers of which whole rows are the largest, the smallest and both in turns: what overflows first."""
    numbers = torch.arange(rows * columns).mul(7919).remainder(2 * most + 1).sub(most).float().view(rows, columns)
    numbers[:3] = most
    numbers[1] = -most
    numbers[2, ::2] = -most
    numbers[3:, 0] = most  # each row's scale is a whole number, so none is rounded
    return numbers


def _use_fbgemm() -> None:
    """The operators that pack weights ask for this; nothing else in the process does."""
    torch.backends.quantized.engine = _ENGINE
