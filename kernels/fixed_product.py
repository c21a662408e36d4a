"""Matrix products of which each row is summed up alike, however many others there are. Contract:
kernels/reference/fixed_product.py.

A program makes a tile of the result, all of K in its order, which is the same in tiles of any shape that a device gets;
rows past the last are zeros. He et al., "Defeating Nondeterminism in LLM
Inference" (2025).
"""

import torch
import triton
import triton.language as tl

from quire.kernels import launch


def fixed_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    (num_rows, size), num_outputs = x.shape, weight.shape[0]
    assert x.stride(1) == 1
    assert weight.is_contiguous()
    out = torch.empty((num_rows, num_outputs), dtype=x.dtype, device=x.device)
    if not num_rows:
        return out
    tile = launch.fixed_product_tile(x.device, x.element_size(), num_rows, num_outputs)
    _fixed_product[(triton.cdiv(num_rows, tile.rows), triton.cdiv(num_outputs, tile.outputs))](
        x, weight, out if bias is None else bias, out, num_rows, num_outputs, size, x.stride(0), ROWS=tile.rows,
        OUTPUTS=tile.outputs, DEPTH=tile.depth, HAS_BIAS=bias is not None, EVEN=size % tile.depth == 0,
        num_warps=tile.num_warps, num_stages=tile.num_stages)
    return out


@triton.jit(do_not_specialize=["x", "num_rows", "x_stride"])  # compiled once, whatever the rows are
def _fixed_product(x, weight, bias, out, num_rows, num_outputs, size, x_stride, ROWS: tl.constexpr,
                   OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr):
    # The programs of one tile of outputs are neighbours: they find its weights in the L2.
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    outputs = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    depth = tl.arange(0, DEPTH)
    real = (rows < num_rows)[:, None]
    x_rows = x + rows.to(tl.int64)[:, None] * x_stride
    # Outputs past the end read the last one's weights and are not stored.
    w_rows = weight + tl.minimum(outputs, num_outputs - 1).to(tl.int64)[:, None] * size
    acc = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for start in range(0, size, DEPTH):
        columns = (start + depth)[None, :]
        if EVEN:
            part = tl.load(x_rows + columns, mask=real, other=0.0)
            w = tl.load(w_rows + columns)
        else:
            part = tl.load(x_rows + columns, mask=real & (columns < size), other=0.0)
            w = tl.load(w_rows + columns, mask=columns < size, other=0.0)
        acc = tl.dot(part, tl.trans(w), acc, input_precision="ieee")
    written = (outputs < num_outputs)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias + outputs, mask=outputs < num_outputs, other=0.0).to(tl.float32)[None, :]
    tl.store(out + rows.to(tl.int64)[:, None] * num_outputs + outputs[None, :], acc.to(out.dtype.element_ty),
             mask=real & written)
