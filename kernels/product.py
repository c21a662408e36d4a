"""Matrix products for few rows, at the speed of reading the weights once. Contract: kernels/reference/product.py.

A program owns some rows of W and a part of K; x is small and stays in the cache. x is taken as 16 or 32 rows, fewer are
padded with zeros: reading W is what takes the time. Where few programs would have much depth, K is cut, and
whoever of an output's programs ends last adds up all parts, in their order.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from quire.kernels import counters, launch, pdl
from quire.kernels.activation import KINDS, gated, gated_activation


def skinny_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    tile = launch.product_tile(x.device, x.element_size(), x.shape[0], weight.shape[0], weight.shape[1])
    if tile is None:
        return F.linear(x, weight, bias)
    return _launch(x, weight, bias, tile, num_outputs=weight.shape[0], kind=-1)


def skinny_gated_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kind: str) -> torch.Tensor:
    tile = launch.gated_product_tile(x.device, x.element_size(), x.shape[0], weight.shape[0] // 2)
    if tile is None:
        return gated_activation(F.linear(x, weight, bias), kind)
    return _launch(x, weight, bias, tile, num_outputs=weight.shape[0] // 2, kind=KINDS[kind])


def _launch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tile: launch.ProductTile, *,
            num_outputs: int, kind: int) -> torch.Tensor:
    num_rows, size = x.shape
    assert num_rows <= launch.SKINNY_ROWS, num_rows
    assert x.stride(1) == 1
    assert weight.is_contiguous()
    out = torch.empty((num_rows, num_outputs), dtype=x.dtype, device=x.device)
    num_tiles = triton.cdiv(num_outputs, tile.outputs)
    rows = 16 if num_rows <= 16 else launch.SKINNY_ROWS
    parts, done = out, out
    if tile.num_splits > 1:
        parts = torch.empty((tile.num_splits, num_tiles, tile.outputs, rows), dtype=torch.float32, device=x.device)
        done = counters.at_zero(x.device, num_tiles)
    part_size = triton.cdiv(triton.cdiv(size, tile.depth), tile.num_splits) * tile.depth
    _skinny_product[(num_tiles, tile.num_splits)](
        x, weight, out if bias is None else bias, out, parts, done, num_rows, num_outputs, size, part_size,
        x.stride(0), ROWS=rows, OUTPUTS=tile.outputs, DEPTH=tile.depth, SPLITS=tile.num_splits, KIND=kind,
        HAS_BIAS=bias is not None, EVEN=size % (tile.depth * tile.num_splits) == 0,
        num_warps=tile.num_warps, num_stages=tile.num_stages, **launch.early(x.device))
    return out


@triton.jit
def _skinny_product(x, weight, bias, out, parts, done, num_rows, num_outputs, size, part_size, x_stride,
                    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, SPLITS: tl.constexpr,
                    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, EARLY: tl.constexpr):
    tile, split = tl.program_id(0), tl.program_id(1)
    rows = tl.arange(0, ROWS)
    outputs = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    depth = tl.arange(0, DEPTH)
    first, end = split * part_size, tl.minimum((split + 1) * part_size, size)
    # Rows past the end read the last one's weights and are not stored.
    real_outputs = tl.minimum(outputs, num_outputs - 1)
    w_rows = weight + real_outputs.to(tl.int64) * size
    up_rows = weight + (real_outputs + num_outputs).to(tl.int64) * size  # where outputs are pairs
    pdl.wait_for_previous(EARLY)
    x_rows = x + rows[:, None] * x_stride
    real = (rows < num_rows)[:, None]
    acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
    up = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for start in range(first, end, DEPTH):
        columns = (start + depth)[None, :]
        if EVEN:
            w = tl.load(w_rows[:, None] + columns, eviction_policy="evict_first")
            part = tl.load(x_rows + columns, mask=real, other=0.0)
        else:
            w = tl.load(w_rows[:, None] + columns, mask=columns < end, other=0.0, eviction_policy="evict_first")
            part = tl.load(x_rows + columns, mask=real & (columns < end), other=0.0)
        acc = tl.dot(w, tl.trans(part), acc, input_precision="ieee")
        if KIND >= 0:
            if EVEN:
                w = tl.load(up_rows[:, None] + columns, eviction_policy="evict_first")
            else:
                w = tl.load(up_rows[:, None] + columns, mask=columns < end, other=0.0, eviction_policy="evict_first")
            up = tl.dot(w, tl.trans(part), up, input_precision="ieee")
    # Not before: programs of the next kernel would take room from those of this one that read.
    pdl.let_next_start(EARLY)
    last = True
    if SPLITS > 1:
        tl.static_assert(KIND < 0)
        cells = tl.arange(0, OUTPUTS)[:, None] * ROWS + rows[None, :]
        tl.store(parts + (split * tl.num_programs(0) + tile) * (OUTPUTS * ROWS) + cells, acc)
        tl.debug_barrier()  # all threads' parts are written before one of them says so
        last = tl.atomic_add(done + tile, 1) == SPLITS - 1
        if last:
            tl.store(done + tile, 0)
            acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
            for other in range(SPLITS):
                acc += tl.load(parts + (other * tl.num_programs(0) + tile) * (OUTPUTS * ROWS) + cells,
                               cache_modifier=".cg")
    if last:
        written = outputs < num_outputs
        if HAS_BIAS:
            acc += tl.load(bias + outputs, mask=written, other=0.0).to(tl.float32)[:, None]
        if KIND >= 0:
            if HAS_BIAS:
                up += tl.load(bias + num_outputs + outputs, mask=written, other=0.0).to(tl.float32)[:, None]
            acc = gated(acc.to(out.dtype.element_ty), up.to(out.dtype.element_ty), KIND)
        places = out + rows[None, :] * num_outputs + outputs[:, None]
        tl.store(places, acc.to(out.dtype.element_ty), mask=written[:, None] & (rows < num_rows)[None, :])
