"""y = x W^T + b on one device, the fastest way that there is for its rows. Called by the linear layers and the head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from quire.engine.quantization.cpu_packed_product import CpuPackedProduct
from quire.engine.quantization.cpu_product import EightBitProduct, HalfProduct, cpu_product
from quire.engine.quantization_config import FLOAT32
from quire.kernels import ops
from quire.kernels.launch import SKINNY_ROWS, is_batch_invariant

Product = Callable[[torch.Tensor], torch.Tensor]

# Rows that oneDNN lays the weights out for; measured good from 1 to 256.
_PACKED_FOR_ROWS = 16


def product(weight: torch.Tensor, bias: torch.Tensor | None = None, cpu_weights: str = FLOAT32) -> Product:
    """[n, in] -> [n, out]; `weight` is [out, in]. The caller lets go of `weight`: on CPU it may have been copied, there
    in the form `cpu_weights`."""
    if cpu_weights != FLOAT32 and copies(weight):
        return cpu_product(weight, bias, cpu_weights)
    if copies(weight) and torch.backends.mkldnn.is_available():
        return PackedProduct(weight, bias)
    if weight.is_cuda:
        return partial(_on_gpu, weight=weight, bias=bias)
    return partial(F.linear, weight=weight, bias=bias)


def copies(weight: torch.Tensor) -> bool:
    """Whether there are products that hold such a weight in a layout of their own."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def gated_product(weight: torch.Tensor, bias: torch.Tensor | None, kind: str, cpu_weights: str = FLOAT32) -> Product:
    """[n, in] -> [n, out / 2]: the product, then act(first half) * second half."""
    plain = product(weight, bias, cpu_weights)

    def in_two(x: torch.Tensor) -> torch.Tensor:
        return ops.gated_activation(plain(x), kind)

    if not (weight.is_cuda and weight.dtype in (torch.float16, torch.bfloat16)):
        return in_two

    def in_one(x: torch.Tensor) -> torch.Tensor:
        if is_batch_invariant():
            return in_two(x)
        by_num_rows = ops.skinny_gated_product if x.shape[0] <= SKINNY_ROWS else ops.wide_gated_product
        return by_num_rows(x, weight, bias, kind)

    return in_one


def _on_gpu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Few rows only read the weights, and the library does not get there; many rows are its business."""
    if is_batch_invariant():
        return ops.fixed_product(x, weight, bias)
    if x.shape[0] <= SKINNY_ROWS and weight.dtype in (torch.float16, torch.bfloat16):
        return ops.skinny_product(x, weight, bias)
    return F.linear(x, weight, bias)


class PackedProduct:
    """Weights in oneDNN's own blocked layout: two to four times faster than F.linear at 2 to 64 rows."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR_ROWS)
        self._bias = bias
        self._linear = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._linear(x, self._weight, self._bias, "none", [], "")


COPYING = (PackedProduct, HalfProduct, EightBitProduct, CpuPackedProduct)  # those that need the weight no more
