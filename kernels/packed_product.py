"""Products with weights in 4 or 8 bits: the codes are read once and become numbers in registers.
Contract: kernels/reference/packed_product.py.

A program owns some outputs, a tile of rows of x and a part of the depth. It goes through the depth in steps that lie
within one group, so that a step's scale multiplies a finished sum. 4-bit codes make two products a step, of the low and
of the high half of each byte. Where few programs would have much depth, it is cut, and whoever of an output's programs
ends last adds up all parts, in their order.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from quire.kernels import counters, launch, packed_codes, pdl
from quire.kernels.packed_weight import BITS, RUN, PackedWeight, table

_MIN_STEP = {4: RUN, 8: 16}  # a product of matrix units is 16 deep


def packed_product(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    (num_rows, size), num_outputs = x.shape, weight.outputs
    assert size == weight.size
    assert x.stride(1) == 1
    tile = launch.packed_tile(x.device, x.element_size(), num_rows, num_outputs, size, BITS[weight.kind])
    if tile is None:
        return F.linear(x, unpack(weight, x.dtype), bias)
    out = torch.empty((num_rows, num_outputs), dtype=x.dtype, device=x.device)
    if not num_rows:
        return out
    step, halves_differ = _step(weight, tile.depth)
    num_tiles, row_tiles = triton.cdiv(num_outputs, tile.outputs), triton.cdiv(num_rows, tile.rows)
    parts, done = out, out
    if tile.num_splits > 1:
        parts = torch.empty((tile.num_splits, num_tiles * row_tiles, tile.outputs, tile.rows), dtype=torch.float32,
                            device=x.device)
        done = counters.at_zero(x.device, num_tiles * row_tiles)
    part_size = triton.cdiv(triton.cdiv(size, step), tile.num_splits) * step
    num_groups = weight.scales.shape[0]
    _packed_product[(num_tiles * row_tiles, tile.num_splits)](
        x, weight.codes, weight.scales, out if weight.zeros is None else weight.zeros,
        out if weight.outer is None else weight.outer, table("nf4", x.device), out if bias is None else bias, out,
        parts, done, num_rows, num_outputs, size, part_size, weight.group, x.stride(0), weight.codes.shape[1],
        KIND=weight.kind, IS_4_BIT=BITS[weight.kind] == 4, ROWS=tile.rows, OUTPUTS=tile.outputs, STEP=step,
        SPLITS=tile.num_splits, ONE_GROUP=num_groups == 1, HALVES_DIFFER=halves_differ,
        HAS_ZEROS=weight.zeros is not None, HAS_OUTER=weight.outer is not None, HAS_BIAS=bias is not None,
        EVEN=size % (step * tile.num_splits) == 0, num_warps=tile.num_warps, num_stages=tile.num_stages,
        **launch.early(x.device))
    return out


def _step(weight: PackedWeight, depth: int) -> tuple[int, bool]:
    """How deep a step is, and whether the halves of its bytes have scales of their own."""
    least = _MIN_STEP[BITS[weight.kind]]
    if weight.scales.shape[0] == 1:
        return depth, False
    if weight.group == RUN // 2 and least == RUN:
        return RUN, True
    assert weight.group % least == 0, (weight.kind, weight.group)
    while weight.group % depth:
        depth //= 2
    return depth, False


@triton.jit(do_not_specialize=["num_rows"])
def _packed_product(x, codes, scales, zeros, outer, table, bias, out, parts, done, num_rows, num_outputs, size,
                    part_size, group, x_stride, row_bytes, KIND: tl.constexpr, IS_4_BIT: tl.constexpr,
                    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, STEP: tl.constexpr, SPLITS: tl.constexpr,
                    ONE_GROUP: tl.constexpr, HALVES_DIFFER: tl.constexpr, HAS_ZEROS: tl.constexpr,
                    HAS_OUTER: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, EARLY: tl.constexpr):
    # The programs of one tile of outputs are neighbours: they find its codes in the L2.
    row_tiles = tl.cdiv(num_rows, ROWS)
    place, split = tl.program_id(0), tl.program_id(1)
    tile = place // row_tiles
    in_tile = tl.arange(0, ROWS)
    rows = place % row_tiles * ROWS + in_tile
    outputs = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    # Outputs past the end read the last one's codes and are not stored.
    real_outputs = tl.minimum(outputs, num_outputs - 1)
    code_rows = codes + real_outputs.to(tl.int64)[:, None] * row_bytes
    first, end = split * part_size, tl.minimum((split + 1) * part_size, size)
    scale_columns = scales + real_outputs
    zero_columns = zeros + real_outputs
    dtype = x.dtype.element_ty
    pdl.wait_for_previous(EARLY)
    x_rows = x + rows.to(tl.int64)[:, None] * x_stride
    real = (rows < num_rows)[:, None]
    acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for start in range(first, end, STEP):
        at = start // group * num_outputs if not ONE_GROUP else 0
        if IS_4_BIT:
            byte = tl.arange(0, STEP // 2)
            low = (start + byte // 16 * 32 + byte % 16)[None, :]
            packed = _codes(code_rows + (start // 2 + byte)[None, :], low < end, EVEN)
            x_low = _inputs(x_rows + low, real, low < end, EVEN)
            x_high = _inputs(x_rows + low + 16, real, low + 16 < end, EVEN)
            w_low = packed_codes.values(packed & 15, table, KIND, dtype)
            w_high = packed_codes.values(packed >> 4, table, KIND, dtype)
            if HAS_ZEROS:
                zero = tl.load(zero_columns + at).to(tl.float32)[:, None]
                w_low = (w_low.to(tl.float32) - zero).to(dtype)
                if HALVES_DIFFER:
                    zero = tl.load(zero_columns + at + num_outputs, mask=start + 16 < end, other=0.0
                                   ).to(tl.float32)[:, None]
                w_high = (w_high.to(tl.float32) - zero).to(dtype)
            if ONE_GROUP:
                acc = tl.dot(w_low, tl.trans(x_low), acc, input_precision="ieee")
                acc = tl.dot(w_high, tl.trans(x_high), acc, input_precision="ieee")
            elif HALVES_DIFFER:
                acc += tl.dot(w_low, tl.trans(x_low), input_precision="ieee") * tl.load(scale_columns + at
                                                                                        ).to(tl.float32)[:, None]
                acc += tl.dot(w_high, tl.trans(x_high), input_precision="ieee") * tl.load(
                    scale_columns + at + num_outputs, mask=start + 16 < end, other=0.0).to(tl.float32)[:, None]
            else:
                part = tl.dot(w_low, tl.trans(x_low), input_precision="ieee")
                part = tl.dot(w_high, tl.trans(x_high), part, input_precision="ieee")
                acc += part * tl.load(scale_columns + at).to(tl.float32)[:, None]
        else:
            columns = (start + tl.arange(0, STEP))[None, :]
            w = packed_codes.values(_codes(code_rows + columns, columns < end, EVEN), table, KIND, dtype)
            x_part = _inputs(x_rows + columns, real, columns < end, EVEN)
            if HAS_ZEROS:
                w = (w.to(tl.float32) - tl.load(zero_columns + at).to(tl.float32)[:, None]).to(dtype)
            if ONE_GROUP:
                acc = tl.dot(w, tl.trans(x_part), acc, input_precision="ieee")
            else:
                acc += tl.dot(w, tl.trans(x_part), input_precision="ieee") * tl.load(scale_columns + at
                                                                                     ).to(tl.float32)[:, None]
    # Not before: programs of the next kernel would take room from those of this one that read.
    pdl.let_next_start(EARLY)
    last = True
    if SPLITS > 1:
        cells = tl.arange(0, OUTPUTS)[:, None] * ROWS + in_tile[None, :]
        tl.store(parts + (split * tl.num_programs(0) + place) * (OUTPUTS * ROWS) + cells, acc)
        tl.debug_barrier()  # all threads' parts are written before one of them says so
        last = tl.atomic_add(done + place, 1) == SPLITS - 1
        if last:
            tl.store(done + place, 0)
            acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
            for other in range(SPLITS):
                acc += tl.load(parts + (other * tl.num_programs(0) + place) * (OUTPUTS * ROWS) + cells,
                               cache_modifier=".cg")
    if last:
        written = outputs < num_outputs
        if ONE_GROUP:
            acc *= tl.load(scale_columns).to(tl.float32)[:, None]
        if HAS_OUTER:
            acc *= tl.load(outer + real_outputs)[:, None]
        if HAS_BIAS:
            acc += tl.load(bias + outputs, mask=written, other=0.0).to(tl.float32)[:, None]
        places = out + rows.to(tl.int64)[None, :] * num_outputs + outputs[:, None]
        tl.store(places, acc.to(out.dtype.element_ty), mask=written[:, None] & (rows < num_rows)[None, :])


@triton.jit
def _codes(pointers, is_there, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(pointers, eviction_policy="evict_first")
    return tl.load(pointers, mask=is_there, other=0, eviction_policy="evict_first")


@triton.jit
def _inputs(pointers, real_rows, is_there, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(pointers, mask=real_rows, other=0.0)
    return tl.load(pointers, mask=real_rows & is_there, other=0.0)


def unpack(weight: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty((weight.outputs, weight.size), dtype=dtype, device=weight.device)
    tile = launch.unpack_tile()
    _unpack[(triton.cdiv(weight.outputs, tile.rows), triton.cdiv(weight.size, tile.columns))](
        weight.codes, weight.scales, weight.scales if weight.zeros is None else weight.zeros,
        weight.scales if weight.outer is None else weight.outer, table("nf4", weight.device), out, weight.outputs,
        weight.size, weight.group, weight.codes.shape[1], KIND=weight.kind, IS_4_BIT=BITS[weight.kind] == 4,
        ROWS=tile.rows, COLUMNS=tile.columns, HAS_ZEROS=weight.zeros is not None, HAS_OUTER=weight.outer is not None,
        num_warps=tile.num_warps, **launch.early(weight.device))
    return out


@triton.jit
def _unpack(codes, scales, zeros, outer, table, out, num_outputs, size, group, row_bytes, KIND: tl.constexpr,
            IS_4_BIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HAS_ZEROS: tl.constexpr,
            HAS_OUTER: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    outputs = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    columns = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    real = (outputs < num_outputs) & (columns < size)
    code_rows = codes + outputs.to(tl.int64) * row_bytes
    if IS_4_BIT:
        packed = tl.load(code_rows + columns // 32 * 16 + columns % 16, mask=real, other=0)
        code = tl.where(columns % 32 < 16, packed & 15, packed >> 4)
    else:
        code = tl.load(code_rows + columns, mask=real, other=0)
    at = columns // group * num_outputs + outputs
    value = packed_codes.values(code, table, KIND, tl.float32)
    if HAS_ZEROS:
        value -= tl.load(zeros + at, mask=real, other=0.0).to(tl.float32)
    value *= tl.load(scales + at, mask=real, other=0.0).to(tl.float32)
    if HAS_OUTER:
        value *= tl.load(outer + outputs, mask=outputs < num_outputs, other=0.0)
    tl.store(out + outputs.to(tl.int64) * size + columns, value.to(out.dtype.element_ty), mask=real)
