"""Gate, up and activation for many rows in one, by tensor descriptors. Contract: kernels/reference/wide_product.py.

What lies between, twice the size of the result, never reaches the memory. A program makes a tile of the result from two
accumulators; groups of row tiles walk along the outputs together, so that they find each other's weights in the L2.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from quire.kernels import launch
from quire.kernels.activation import KINDS, gated, gated_activation

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # before Triton 3.4
    TensorDescriptor = None

_GROUP = 8  # row tiles


def wide_gated_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kind: str) -> torch.Tensor:
    num_rows, size = x.shape
    num_outputs = weight.shape[0] // 2
    tile = launch.wide_gated_tile(x.device, x.element_size(), num_rows, size)
    if TensorDescriptor is None or tile is None or bias is not None or size * x.element_size() % 16:
        return gated_activation(F.linear(x, weight, bias), kind)
    assert x.is_contiguous()
    assert weight.is_contiguous()
    out = torch.empty((num_rows, num_outputs), dtype=x.dtype, device=x.device)
    x_tiles = TensorDescriptor(x, [num_rows, size], [size, 1], [tile.rows, tile.depth])
    w_tiles = TensorDescriptor(weight, [2 * num_outputs, size], [size, 1], [tile.outputs, tile.depth])
    num_tiles = triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_outputs, tile.outputs)
    _wide_gated_product[(num_tiles,)](
        x_tiles, w_tiles, out, num_rows, num_outputs, size, ROWS=tile.rows, OUTPUTS=tile.outputs, DEPTH=tile.depth,
        GROUP=_GROUP, KIND=KINDS[kind], num_warps=tile.num_warps, num_stages=tile.num_stages)
    return out


@triton.jit(do_not_specialize=["num_rows"])
def _wide_gated_product(x, weight, out, num_rows, num_outputs, size, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
                        DEPTH: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr):
    row_tiles = tl.cdiv(num_rows, ROWS)
    in_group = GROUP * tl.cdiv(num_outputs, OUTPUTS)
    group, place = tl.program_id(0) // in_group, tl.program_id(0) % in_group
    group_rows = tl.minimum(row_tiles - group * GROUP, GROUP)
    row = (group * GROUP + place % group_rows) * ROWS
    output = place // group_rows * OUTPUTS
    gate = tl.zeros([ROWS, OUTPUTS], tl.float32)
    up = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for depth in range(0, size, DEPTH):
        part = x.load([row, depth])
        gate = tl.dot(part, weight.load([output, depth]).T, gate, input_precision="ieee")
        up = tl.dot(part, weight.load([num_outputs + output, depth]).T, up, input_precision="ieee")
    dtype = out.dtype.element_ty
    result = gated(gate.to(dtype), up.to(dtype), KIND).to(dtype)
    rows, outputs = row + tl.arange(0, ROWS), output + tl.arange(0, OUTPUTS)
    tl.store(out + rows.to(tl.int64)[:, None] * num_outputs + outputs[None, :], result,
             mask=(rows < num_rows)[:, None] & (outputs < num_outputs)[None, :])
