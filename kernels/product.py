"""A matrix product for few rows, at the speed of reading the weights once. Contract: kernels/reference/product.py.

A program owns some rows of W and runs over all of K; x is small and stays in the cache. The matrix units want 16 rows
of x, so fewer are padded with zeros: reading W is what takes the time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from kernels import launch


def skinny_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    num_rows, size = x.shape
    num_outputs = weight.shape[0]
    assert num_rows <= launch.SKINNY_ROWS, num_rows
    assert x.stride(1) == 1
    assert weight.is_contiguous()
    tile = launch.product_tile(x.device, x.element_size(), num_outputs, size)
    if tile is None:
        return F.linear(x, weight, bias)
    out = torch.empty((num_rows, num_outputs), dtype=x.dtype, device=x.device)
    _skinny_product[(triton.cdiv(num_outputs, tile.rows),)](
        x, weight, out if bias is None else bias, out, num_rows, num_outputs, size, x.stride(0),
        OUTPUTS=tile.rows, DEPTH=tile.columns, HAS_BIAS=bias is not None, EVEN=size % tile.columns == 0,
        num_warps=tile.num_warps, num_stages=tile.num_stages)
    return out


@triton.jit
def _skinny_product(x, weight, bias, out, num_rows, num_outputs, size, x_stride,
                    OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr):
    rows = tl.arange(0, 16)
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    depth = tl.arange(0, DEPTH)
    # Rows past the end read the last one's weights and are not stored.
    w_rows = weight + tl.minimum(outputs, num_outputs - 1).to(tl.int64)[:, None] * size
    x_rows = x + rows[:, None] * x_stride
    real = (rows < num_rows)[:, None]
    acc = tl.zeros([OUTPUTS, 16], tl.float32)
    for start in range(0, size, DEPTH):
        columns = start + depth
        if EVEN:
            w = tl.load(w_rows + columns[None, :], eviction_policy="evict_first")
            part = tl.load(x_rows + columns[None, :], mask=real, other=0.0)
        else:
            inside = (columns < size)[None, :]
            w = tl.load(w_rows + columns[None, :], mask=inside, other=0.0, eviction_policy="evict_first")
            part = tl.load(x_rows + columns[None, :], mask=real & inside, other=0.0)
        acc = tl.dot(w, tl.trans(part), acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias + outputs, mask=outputs < num_outputs, other=0.0).to(tl.float32)[:, None]
    places = out + rows[None, :] * num_outputs + outputs[:, None]
    tl.store(places, acc.to(out.dtype.element_ty), mask=(outputs < num_outputs)[:, None] & (rows < num_rows)[None, :])
