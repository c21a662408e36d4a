"""Products of two matrices of 8 bits, and the rounding of rows to 8 bits.
Contract: kernels/reference/eight_bit_product.py.

Sums on Hopper's matrix units keep some 14 bits of e4m3, so that each step of the depth makes a sum of its own, which is
added up in float32 (DeepSeek-V3 technical report, 3.3.2).
"""

from typing import Literal

import torch
import triton
import triton.language as tl

from quire.kernels import counters, launch, pdl
from quire.kernels.packed_weight import PackedWeight
from quire.kernels.reference.eight_bit_product import LEAST_SCALE, MOST

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # before Triton 3.4: launch.multiplies says that there are no such products
    TensorDescriptor = None

_GROUP = 8  # row tiles


def round_rows(x: torch.Tensor, kind: Literal["int8", "e4m3"], group: int, words: int
               ) -> tuple[torch.Tensor, torch.Tensor]:
    num_rows, size = x.shape
    assert x.stride(1) == 1
    run = 4 * words
    row_bytes = triton.cdiv(size, run) * run
    codes = torch.empty((num_rows, row_bytes // 4), dtype=torch.int32, device=x.device)
    one_group = group >= size
    scales = torch.empty((num_rows, 1 if one_group else triton.cdiv(size, group)), dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(row_bytes) if one_group else group
    assert one_group or group % run == 0, group
    _round_rows[(num_rows, scales.shape[1])](
        x, codes.view(torch.uint8), scales, size, row_bytes, x.stride(0), scales.shape[1], BLOCK=block, WORDS=words,
        IS_INT8=kind == "int8", MOST=MOST[kind], LEAST=LEAST_SCALE, num_warps=launch.warps_for(block),
        **launch.early(x.device))
    return codes, scales


@triton.jit
def _round_rows(x, codes, scales, size, row_bytes, x_stride, num_groups, BLOCK: tl.constexpr, WORDS: tl.constexpr,
                IS_INT8: tl.constexpr, MOST: tl.constexpr, LEAST: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = group * BLOCK + tl.arange(0, BLOCK)  # of a byte among the row's
    # The element that a PackedWeight has there.
    RUN: tl.constexpr = 4 * WORDS
    column = place // RUN * RUN + place % 4 * WORDS + place % RUN // 4
    value = tl.load(x + row * x_stride + column, mask=column < size, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), 0) / MOST, LEAST)
    tl.store(scales + row * num_groups + group, scale)
    scaled = tl.minimum(tl.maximum(value / scale, -MOST), MOST)
    if IS_INT8:
        # The float's own last place is then that of whole numbers, so that adding rounds to the nearest, evens first.
        code = ((scaled + 12582912.0) - 12582912.0).to(tl.int8).to(tl.uint8, bitcast=True)
    else:
        code = scaled.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    tl.store(codes + row * row_bytes + place, code, mask=place < row_bytes)


def eight_bit_product(codes: torch.Tensor, scales: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None,
                      dtype: torch.dtype) -> torch.Tensor:
    num_rows, num_outputs = codes.shape[0], weight.outputs
    one_group = scales.shape[1] == 1
    assert weight.zeros is None
    assert weight.outer is None
    assert one_group == (weight.scales.shape[0] == 1)
    assert one_group or weight.group % launch.EIGHT_BIT_DEPTH == 0, weight.group
    out = torch.empty((num_rows, num_outputs), dtype=dtype, device=codes.device)
    size = 4 * codes.shape[1]
    tile = launch.eight_bit_tile(codes.device, num_rows, num_outputs, size, one_group)
    row_tiles, num_tiles = triton.cdiv(num_rows, tile.rows), triton.cdiv(num_outputs, tile.outputs)
    part_size = triton.cdiv(triton.cdiv(size, tile.depth), tile.num_splits) * tile.depth
    num_splits = triton.cdiv(size, part_size)
    parts, done = out, out
    if num_splits > 1:
        parts = torch.empty((num_splits, num_tiles * row_tiles, tile.rows, tile.outputs), dtype=torch.float32,
                            device=codes.device)
        done = counters.at_zero(codes.device, num_tiles * row_tiles)
    stored = torch.int8 if weight.kind == "int8" else torch.float8_e4m3fn
    x_tiles = TensorDescriptor(codes.view(stored), [num_rows, size], [size, 1], [tile.rows, tile.depth])
    w_tiles = TensorDescriptor(weight.codes.view(stored), [num_outputs, size], [size, 1], [tile.outputs, tile.depth])
    _eight_bit_product[(row_tiles * num_tiles, num_splits)](
        x_tiles, w_tiles, scales, weight.scales, out if bias is None else bias, out, parts, done, num_rows, num_outputs,
        size, part_size, scales.shape[1], weight.group, IS_INT8=weight.kind == "int8", ROWS=tile.rows,
        OUTPUTS=tile.outputs, DEPTH=tile.depth, ONE_GROUP=one_group, IS_SPLIT=num_splits > 1,
        HAS_BIAS=bias is not None, GROUP=_GROUP, num_warps=tile.num_warps, num_stages=tile.num_stages)
    return out


@triton.jit(do_not_specialize=["num_rows"])
def _eight_bit_product(x, codes, x_scales, scales, bias, out, parts, done, num_rows, num_outputs, size, part_size,
                       num_groups, group, IS_INT8: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
                       DEPTH: tl.constexpr, ONE_GROUP: tl.constexpr, IS_SPLIT: tl.constexpr, HAS_BIAS: tl.constexpr,
                       GROUP: tl.constexpr):
    # Groups of row tiles walk along the outputs together, so that they find each other's codes in the L2.
    row_tiles = tl.cdiv(num_rows, ROWS)
    in_group = GROUP * tl.cdiv(num_outputs, OUTPUTS)
    tile, split = tl.program_id(0), tl.program_id(1)
    walk, place = tile // in_group, tile % in_group
    walk_rows = tl.minimum(row_tiles - walk * GROUP, GROUP)
    row, output = (walk * GROUP + place % walk_rows) * ROWS, place // walk_rows * OUTPUTS
    in_rows, in_outputs = tl.arange(0, ROWS), tl.arange(0, OUTPUTS)
    rows, outputs = row + in_rows, output + in_outputs
    # Rows and outputs past the end read the last one's scales and are not stored.
    real_rows, real_outputs = tl.minimum(rows, num_rows - 1), tl.minimum(outputs, num_outputs - 1)
    acc = tl.zeros([ROWS, OUTPUTS], tl.float32)
    whole = tl.zeros([ROWS, OUTPUTS], tl.int32)
    first = split * part_size
    for start in range(first, tl.minimum(first + part_size, size), DEPTH):
        a, b = x.load([row, start]), codes.load([output, start]).T
        if ONE_GROUP:
            if IS_INT8:
                whole = tl.dot(a, b, whole, out_dtype=tl.int32)
            else:
                acc += tl.dot(a, b)
        else:
            of_rows = tl.load(x_scales + real_rows * num_groups + start // group)
            of_outputs = tl.load(scales + start // group * num_outputs + real_outputs).to(tl.float32)
            acc += tl.dot(a, b).to(tl.float32) * of_rows[:, None] * of_outputs[None, :]
    if ONE_GROUP and IS_INT8:
        acc = whole.to(tl.float32)
    last = True
    if IS_SPLIT:
        cells = in_rows[:, None] * OUTPUTS + in_outputs[None, :]
        tl.store(parts + (split * tl.num_programs(0) + tile) * (ROWS * OUTPUTS) + cells, acc)
        tl.debug_barrier()  # all threads' parts are written before one of them says so
        last = tl.atomic_add(done + tile, 1) == tl.num_programs(1) - 1
        if last:
            tl.store(done + tile, 0)
            acc = tl.zeros([ROWS, OUTPUTS], tl.float32)
            for other in range(tl.num_programs(1)):
                acc += tl.load(parts + (other * tl.num_programs(0) + tile) * (ROWS * OUTPUTS) + cells,
                               cache_modifier=".cg")
    if last:
        if ONE_GROUP:
            acc *= tl.load(x_scales + real_rows)[:, None] * tl.load(scales + real_outputs).to(tl.float32)[None, :]
        if HAS_BIAS:
            acc += tl.load(bias + real_outputs).to(tl.float32)[None, :]
        tl.store(out + rows.to(tl.int64)[:, None] * num_outputs + outputs[None, :], acc.to(out.dtype.element_ty),
                 mask=(rows < num_rows)[:, None] & (outputs < num_outputs)[None, :])
