"""Products with weights in 4 or 8 bits: the codes are read once and become numbers in registers.
Contract: kernels/reference/packed_product.py.

A program owns some outputs, a tile of rows of x and a part of the depth, through which it goes in steps of some words
of each output. The numbers at one place of all these words are a matrix that x is multiplied with, so none has to move
to another thread. Scales multiply the sums of groups, and zeros are taken off with the sums of x. Where few programs
would have much depth, it is cut, and whoever of an output's programs ends last adds up all parts, in their order.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from quire.kernels import counters, launch, packed_codes, pdl
from quire.kernels.packed_weight import BITS, WORDS, PackedWeight, run, table


def packed_product(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    (num_rows, size), num_outputs = x.shape, weight.outputs
    assert size == weight.size
    assert x.stride(1) == 1
    assert weight.codes.is_contiguous()
    assert weight.scales.is_contiguous()
    tile = launch.packed_tile(x.device, x.element_size(), num_rows, num_outputs, size)
    num_scales = _scales_of_run(weight)
    if tile is None or not num_scales:
        return F.linear(x, unpack(weight, x.dtype), bias)
    out = torch.empty((num_rows, num_outputs), dtype=x.dtype, device=x.device)
    if not num_rows:
        return out
    num_groups = weight.scales.shape[0]
    one_group = num_groups == 1 and weight.zeros is None
    num_runs = tile.runs if one_group else 1  # of a step
    step = num_runs * run(weight.kind)
    num_tiles, row_tiles = triton.cdiv(num_outputs, tile.outputs), triton.cdiv(num_rows, tile.rows)
    parts, done = out, out
    if tile.num_splits > 1:
        parts = torch.empty((tile.num_splits, num_tiles * row_tiles, tile.outputs, tile.rows), dtype=torch.float32,
                            device=x.device)
        done = counters.at_zero(x.device, num_tiles * row_tiles)
    part_size = triton.cdiv(triton.cdiv(size, step), tile.num_splits) * step
    _packed_product[(num_tiles * row_tiles, tile.num_splits)](
        x, weight.codes, weight.scales, out if weight.zeros is None else weight.zeros,
        out if weight.outer is None else weight.outer, table("nf4", x.device), out if bias is None else bias, out,
        parts, done, num_rows, num_outputs, size, part_size, weight.group, num_groups, x.stride(0),
        weight.codes.shape[1], KIND=weight.kind, BITS=BITS[weight.kind], ROWS=tile.rows, OUTPUTS=tile.outputs,
        RUNS=num_runs, SPLITS=tile.num_splits, ONE_GROUP=one_group, SCALES=num_scales,
        HAS_ZEROS=weight.zeros is not None, HAS_OUTER=weight.outer is not None, HAS_BIAS=bias is not None,
        EVEN=size % (step * tile.num_splits) == 0, FAST=launch.has_assembly(x.device), num_warps=tile.num_warps,
        num_stages=tile.num_stages, **launch.early(x.device))
    return out


def _scales_of_run(weight: PackedWeight) -> int:
    """How many groups the elements of a run lie in; 0: groups begin within what is multiplied at once."""
    size = run(weight.kind)
    if weight.scales.shape[0] == 1 or weight.group % size == 0:
        return 1
    return size // weight.group if size % weight.group == 0 and weight.group % WORDS == 0 else 0


@triton.jit(do_not_specialize=["num_rows"])
def _packed_product(x, codes, scales, zeros, outer, table, bias, out, parts, done, num_rows, num_outputs, size,
                    part_size, group, num_groups, x_stride, row_words, KIND: tl.constexpr, BITS: tl.constexpr,
                    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, RUNS: tl.constexpr, SPLITS: tl.constexpr,
                    ONE_GROUP: tl.constexpr, SCALES: tl.constexpr, HAS_ZEROS: tl.constexpr, HAS_OUTER: tl.constexpr,
                    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, FAST: tl.constexpr, EARLY: tl.constexpr):
    PLACES: tl.constexpr = 32 // BITS  # codes of a word
    RUN: tl.constexpr = 16 * PLACES
    # The programs of one tile of outputs are neighbours: they find its codes in the L2.
    row_tiles = tl.cdiv(num_rows, ROWS)
    place, split = tl.program_id(0), tl.program_id(1)
    tile = place // row_tiles
    in_tile = tl.arange(0, ROWS)
    rows = place % row_tiles * ROWS + in_tile
    outputs = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    # Outputs past the end read the last one's codes and are not stored.
    real_outputs = tl.minimum(outputs, num_outputs - 1)
    word = tl.arange(0, 16 * RUNS)
    words = codes + real_outputs.to(tl.int64)[:, None] * row_words + word[None, :]
    first_of_word = (word // 16 * RUN + word % 16)[None, :]
    first, end = split * part_size, tl.minimum((split + 1) * part_size, size)
    scale_columns, zero_columns = scales + real_outputs, zeros + real_outputs
    dtype: tl.constexpr = x.dtype.element_ty
    ones = tl.full([OUTPUTS, 16 * RUNS], 1.0, dtype)
    pdl.wait_for_previous(EARLY)
    x_rows = x + rows.to(tl.int64)[:, None] * x_stride
    real = (rows < num_rows)[:, None]
    acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
    scale = _of_group(scale_columns, first // group, num_groups, num_outputs)
    zero = scale
    if HAS_ZEROS:
        zero = _of_group(zero_columns, first // group, num_groups, num_outputs)
    for start in range(first, end, RUN * RUNS):
        columns = start + first_of_word
        if EVEN:
            packed = tl.load(words + start // PLACES, eviction_policy="evict_first")
        else:
            packed = tl.load(words + start // PLACES, mask=columns < end, other=0, eviction_policy="evict_first")
        next_scale, next_zero = scale, zero
        if SCALES == 1 and not ONE_GROUP:
            # A step ahead: nothing else would hide how long it takes.
            next_scale = _of_group(scale_columns, (start + RUN) // group, num_groups, num_outputs)
            if HAS_ZEROS:
                next_zero = _of_group(zero_columns, (start + RUN) // group, num_groups, num_outputs)
        for share in tl.static_range(SCALES):
            part = tl.zeros([OUTPUTS, ROWS], tl.float32)
            sums = tl.zeros([OUTPUTS, ROWS], tl.float32)
            for i in tl.static_range(PLACES // SCALES):
                at_place = columns + 16 * (share * (PLACES // SCALES) + i)
                if EVEN:
                    some = tl.load(x_rows + at_place, mask=real, other=0.0)
                else:
                    some = tl.load(x_rows + at_place, mask=real & (at_place < end), other=0.0)
                w = packed_codes.values(packed, table, share * (PLACES // SCALES) + i, KIND, dtype, FAST)
                if ONE_GROUP:
                    acc = tl.dot(w, tl.trans(some), acc, input_precision="ieee")
                else:
                    part = tl.dot(w, tl.trans(some), part, input_precision="ieee")
                if HAS_ZEROS:
                    # Each row of it is the sums of x, where they are needed.
                    sums = tl.dot(ones, tl.trans(some), sums, input_precision="ieee")
            if SCALES > 1:
                scale = _of_group(scale_columns, start // group + share, num_groups, num_outputs)
                if HAS_ZEROS:
                    zero = _of_group(zero_columns, start // group + share, num_groups, num_outputs)
            if HAS_ZEROS:
                acc += scale * (part - zero * sums)
            elif not ONE_GROUP:
                acc += scale * part
        scale, zero = next_scale, next_zero
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
            acc *= scale
        if HAS_OUTER:
            acc *= tl.load(outer + real_outputs)[:, None]
        if HAS_BIAS:
            acc += tl.load(bias + outputs, mask=written, other=0.0).to(tl.float32)[:, None]
        places = out + rows.to(tl.int64)[None, :] * num_outputs + outputs[:, None]
        tl.store(places, acc.to(out.dtype.element_ty), mask=written[:, None] & (rows < num_rows)[None, :])


@triton.jit
def _of_group(columns, number, num_groups, num_outputs):
    """Each output's, of the group of that number; of the last one past the end. [outputs, 1]"""
    return tl.load(columns + tl.minimum(number, num_groups - 1) * num_outputs).to(tl.float32)[:, None]


def unpack(weight: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty((weight.outputs, weight.size), dtype=dtype, device=weight.device)
    num_words = weight.codes.shape[1]
    tile = launch.unpack_tile()
    _unpack[(triton.cdiv(weight.outputs, tile.rows), triton.cdiv(num_words, tile.columns))](
        weight.codes, weight.scales, weight.scales if weight.zeros is None else weight.zeros,
        weight.scales if weight.outer is None else weight.outer, table("nf4", weight.device), out, weight.outputs,
        weight.size, weight.group, num_words, KIND=weight.kind, BITS=BITS[weight.kind], ROWS=tile.rows,
        COLUMNS=tile.columns, HAS_ZEROS=weight.zeros is not None, HAS_OUTER=weight.outer is not None,
        num_warps=tile.num_warps, **launch.early(weight.device))
    return out


@triton.jit
def _unpack(codes, scales, zeros, outer, table, out, num_outputs, size, group, row_words, KIND: tl.constexpr,
            BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HAS_ZEROS: tl.constexpr,
            HAS_OUTER: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    PLACES: tl.constexpr = 32 // BITS
    outputs = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    word = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    packed = tl.load(codes + outputs.to(tl.int64) * row_words + word,
                     mask=(outputs < num_outputs) & (word < row_words), other=0)
    for place in tl.static_range(PLACES):
        columns = word // 16 * (16 * PLACES) + place * 16 + word % 16
        real = (outputs < num_outputs) & (columns < size)
        at = columns // group * num_outputs + outputs
        value = packed_codes.values(packed, table, place, KIND, tl.float32, False)
        if HAS_ZEROS:
            value -= tl.load(zeros + at, mask=real, other=0.0).to(tl.float32)
        value *= tl.load(scales + at, mask=real, other=0.0).to(tl.float32)
        if HAS_OUTER:
            value *= tl.load(outer + outputs, mask=outputs < num_outputs, other=0.0)
        tl.store(out + outputs.to(tl.int64) * size + columns, value.to(out.dtype.element_ty), mask=real)
