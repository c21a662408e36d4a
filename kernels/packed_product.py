"""Products with weights in 4 or 8 bits: the codes are read once and become numbers in registers.
Contract: kernels/reference/packed_product.py.

A program owns some outputs, a tile of rows of x and a part of the depth, through which it goes run by run. The numbers
at one place of all these words are a matrix that x is multiplied with, so none has to move to another thread. Scales
multiply the sums of groups, and zeros are taken off with the sums of x, which another kernel makes before. Where few
programs would have much depth, it is cut, and the last program of an output to finish adds up all parts, in order.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from quire.kernels import counters, launch, packed_codes, pdl
from quire.kernels.packed_weight import BITS, PackedWeight, table

_SUMMED = 2048  # elements of x that a program adds up


def packed_product(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    (num_rows, size), num_outputs = x.shape, weight.outputs
    assert size == weight.size
    assert x.stride(1) == 1
    assert weight.codes.is_contiguous()
    assert weight.scales.is_contiguous()
    tile = launch.packed_tile(x.device, x.element_size(), BITS[weight.kind], num_rows, num_outputs, size)
    num_scales = _scales_of_run(weight)
    if tile is None or not num_scales:
        return F.linear(x, unpack(weight, x.dtype), bias)
    out = torch.empty((num_rows, num_outputs), dtype=x.dtype, device=x.device)
    if not num_rows:
        return out
    num_groups = weight.scales.shape[0]
    num_tiles, row_tiles = triton.cdiv(num_outputs, tile.outputs), triton.cdiv(num_rows, tile.rows)
    part_size = triton.cdiv(triton.cdiv(size, weight.run), tile.num_splits) * weight.run
    num_splits = triton.cdiv(size, part_size)
    parts, done = out, out
    if num_splits > 1:
        parts = torch.empty((num_splits, num_tiles * row_tiles, tile.outputs, tile.rows), dtype=torch.float32,
                            device=x.device)
        done = counters.at_zero(x.device, num_tiles * row_tiles)
    _packed_product[(num_tiles * row_tiles, num_splits)](
        x, weight.codes, weight.scales, out if weight.zeros is None else weight.zeros,
        out if weight.zeros is None else _sums(x, weight.run, num_scales),
        out if weight.outer is None else weight.outer, table("nf4", x.device), out if bias is None else bias, out,
        parts, done, num_rows, num_outputs, size, part_size, num_groups, x.stride(0), weight.codes.shape[1],
        KIND=weight.kind, BITS=BITS[weight.kind], WORDS=weight.words, ROWS=tile.rows, OUTPUTS=tile.outputs,
        IS_SPLIT=num_splits > 1, ONE_GROUP=num_groups == 1 and weight.zeros is None, SCALES=num_scales,
        GROUP_RUNS=max(1, weight.group // weight.run), HAS_ZEROS=weight.zeros is not None,
        HAS_OUTER=weight.outer is not None, HAS_BIAS=bias is not None, EVEN=size % weight.run == 0,
        FAST=launch.has_assembly(x.device), num_warps=tile.num_warps, num_stages=tile.num_stages,
        **launch.early(x.device))
    return out


def _scales_of_run(weight: PackedWeight) -> int:
    """How many groups the elements of a run lie in; 0: groups begin within what is multiplied at once."""
    if weight.scales.shape[0] == 1 or weight.group % weight.run == 0:
        return 1
    return weight.run // weight.group if weight.run % weight.group == 0 and weight.group % weight.words == 0 else 0


@triton.jit(do_not_specialize=["num_rows"])
def _packed_product(x, codes, scales, zeros, sums, outer, table, bias, out, parts, done, num_rows, num_outputs,
                    size, part_size, num_groups, x_stride, row_words, KIND: tl.constexpr, BITS: tl.constexpr,
                    WORDS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, IS_SPLIT: tl.constexpr,
                    ONE_GROUP: tl.constexpr, SCALES: tl.constexpr, GROUP_RUNS: tl.constexpr, HAS_ZEROS: tl.constexpr,
                    HAS_OUTER: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, FAST: tl.constexpr,
                    EARLY: tl.constexpr):
    PLACES: tl.constexpr = 32 // BITS  # codes of a word
    RUN: tl.constexpr = WORDS * PLACES
    SHARE: tl.constexpr = PLACES // SCALES  # places whose codes have one scale
    # The programs of one tile of outputs are neighbours: they find its codes in the L2.
    row_tiles = tl.cdiv(num_rows, ROWS)
    place, split = tl.program_id(0), tl.program_id(1)
    tile = place // row_tiles
    in_tile = tl.arange(0, ROWS)
    rows = place % row_tiles * ROWS + in_tile
    outputs = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    # Outputs past the end read the last one's codes and are not stored.
    real_outputs = tl.minimum(outputs, num_outputs - 1)
    word = tl.arange(0, WORDS)
    first, end = split * part_size, tl.minimum((split + 1) * part_size, size)
    words = codes + real_outputs.to(tl.int64)[:, None] * row_words + word[None, :]
    scale_columns, zero_columns = scales + real_outputs, zeros + real_outputs
    dtype: tl.constexpr = x.dtype.element_ty
    # Scales are read three shares ahead: nothing else would hide how long it takes.
    share = first // RUN * SCALES
    scale = _of_share(scale_columns, share, num_groups, num_outputs, SCALES, GROUP_RUNS)
    zero, scale_1, scale_2, zero_1, zero_2 = scale, scale, scale, scale, scale
    if not ONE_GROUP:
        scale_1 = _of_share(scale_columns, share + 1, num_groups, num_outputs, SCALES, GROUP_RUNS)
        scale_2 = _of_share(scale_columns, share + 2, num_groups, num_outputs, SCALES, GROUP_RUNS)
    if HAS_ZEROS:
        zero = _of_share(zero_columns, share, num_groups, num_outputs, SCALES, GROUP_RUNS)
        zero_1 = _of_share(zero_columns, share + 1, num_groups, num_outputs, SCALES, GROUP_RUNS)
        zero_2 = _of_share(zero_columns, share + 2, num_groups, num_outputs, SCALES, GROUP_RUNS)
    pdl.wait_for_previous(EARLY)
    x_rows = x + rows.to(tl.int64)[:, None] * x_stride
    real = (rows < num_rows)[:, None]
    sum_columns = sums + tl.minimum(rows, num_rows - 1)
    acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for start in range(first, end, RUN):
        columns = (start + word)[None, :]
        of_run = x_rows + columns
        packed = tl.load(words + start // PLACES, eviction_policy="evict_first")
        for of_scale in tl.static_range(SCALES):
            part = acc if ONE_GROUP else tl.zeros([OUTPUTS, ROWS], tl.float32)
            share = start // RUN * SCALES + of_scale
            if HAS_ZEROS:
                of_x = tl.load(sum_columns + share * num_rows)
            for i in tl.static_range(SHARE):
                behind = (of_scale * SHARE + i) * WORDS
                if EVEN:
                    some = tl.load(of_run + behind, mask=real, other=0.0)
                else:
                    some = tl.load(of_run + behind, mask=real & (columns + behind < end), other=0.0)
                w = packed_codes.values(packed, table, of_scale * SHARE + i, KIND, dtype, FAST)
                part = tl.dot(w, tl.trans(some), part, input_precision="ieee")
            if ONE_GROUP:
                acc = part
            else:
                next_scale = _of_share(scale_columns, share + 3, num_groups, num_outputs, SCALES, GROUP_RUNS)
                if HAS_ZEROS:
                    part -= zero.to(tl.float32)[:, None] * of_x[None, :]
                    zero, zero_1, zero_2 = zero_1, zero_2, _of_share(zero_columns, share + 3, num_groups, num_outputs,
                                                                     SCALES, GROUP_RUNS)
                acc += scale.to(tl.float32)[:, None] * part
                scale, scale_1, scale_2 = scale_1, scale_2, next_scale
    # Not before: programs of the next kernel would take room from those of this one that read.
    pdl.let_next_start(EARLY)
    last = True
    if IS_SPLIT:
        num_splits = tl.num_programs(1)
        cells = tl.arange(0, OUTPUTS)[:, None] * ROWS + in_tile[None, :]
        tl.store(parts + (split * tl.num_programs(0) + place) * (OUTPUTS * ROWS) + cells, acc)
        tl.debug_barrier()  # all threads' parts are written before one of them says so
        last = tl.atomic_add(done + place, 1) == num_splits - 1
        if last:
            tl.store(done + place, 0)
            acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
            for other in range(num_splits):
                acc += tl.load(parts + (other * tl.num_programs(0) + place) * (OUTPUTS * ROWS) + cells,
                               cache_modifier=".cg")
    if last:
        written = outputs < num_outputs
        if ONE_GROUP:
            acc *= scale.to(tl.float32)[:, None]
        if HAS_OUTER:
            acc *= tl.load(outer + real_outputs)[:, None]
        if HAS_BIAS:
            acc += tl.load(bias + outputs, mask=written, other=0.0).to(tl.float32)[:, None]
        places = out + rows.to(tl.int64)[None, :] * num_outputs + outputs[:, None]
        tl.store(places, acc.to(out.dtype.element_ty), mask=written[:, None] & (rows < num_rows)[None, :])


def _sums(x: torch.Tensor, run: int, num_scales: int) -> torch.Tensor:
    """Of each scale's share of a run: float32 [shares of whole runs, rows], what zeros are multiplied with."""
    num_rows, size = x.shape
    num_shares, share = triton.cdiv(size, run) * num_scales, run // num_scales
    sums = torch.empty((num_shares, num_rows), dtype=torch.float32, device=x.device)
    shares = max(1, _SUMMED // share)
    _sum_shares[(num_rows, triton.cdiv(num_shares, shares))](
        x, sums, size, num_rows, x.stride(0), num_shares, SHARES=shares, SHARE=share,
        num_warps=launch.warps_for(_SUMMED), **launch.early(x.device))
    return sums


@triton.jit(do_not_specialize=["num_rows"])
def _sum_shares(x, sums, size, num_rows, x_stride, num_shares, SHARES: tl.constexpr, SHARE: tl.constexpr,
                EARLY: tl.constexpr):
    pdl.begin(EARLY)
    row = tl.program_id(0)
    shares = tl.program_id(1) * SHARES + tl.arange(0, SHARES)
    columns = shares[:, None] * SHARE + tl.arange(0, SHARE)[None, :]
    values = tl.load(x + row.to(tl.int64) * x_stride + columns, mask=columns < size, other=0.0)
    tl.store(sums + shares * num_rows + row, tl.sum(values.to(tl.float32), 1), mask=shares < num_shares)


@triton.jit
def _of_share(columns, number, num_groups, num_outputs, SCALES: tl.constexpr, GROUP_RUNS: tl.constexpr):
    """Each output's number, of the group of that share of a run; of the last group past the end. [outputs]"""
    group = number if SCALES > 1 else number // GROUP_RUNS
    return tl.load(columns + tl.minimum(group, num_groups - 1) * num_outputs)


def unpack(weight: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty((weight.outputs, weight.size), dtype=dtype, device=weight.device)
    num_words = weight.codes.shape[1]
    tile = launch.unpack_tile()
    _unpack[(triton.cdiv(weight.outputs, tile.rows), triton.cdiv(num_words, tile.columns))](
        weight.codes, weight.scales, weight.scales if weight.zeros is None else weight.zeros,
        weight.scales if weight.outer is None else weight.outer, table("nf4", weight.device), out, weight.outputs,
        weight.size, weight.group, num_words, KIND=weight.kind, BITS=BITS[weight.kind], WORDS=weight.words,
        ROWS=tile.rows, COLUMNS=tile.columns, HAS_ZEROS=weight.zeros is not None, HAS_OUTER=weight.outer is not None,
        num_warps=tile.num_warps, **launch.early(weight.device))
    return out


@triton.jit
def _unpack(codes, scales, zeros, outer, table, out, num_outputs, size, group, row_words, KIND: tl.constexpr,
            BITS: tl.constexpr, WORDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
            HAS_ZEROS: tl.constexpr, HAS_OUTER: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    PLACES: tl.constexpr = 32 // BITS
    outputs = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    word = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    packed = tl.load(codes + outputs.to(tl.int64) * row_words + word,
                     mask=(outputs < num_outputs) & (word < row_words), other=0)
    for place in tl.static_range(PLACES):
        columns = word // WORDS * (WORDS * PLACES) + place * WORDS + word % WORDS
        real = (outputs < num_outputs) & (columns < size)
        at = columns // group * num_outputs + outputs
        value = packed_codes.values(packed, table, place, KIND, tl.float32, False)
        if HAS_ZEROS:
            value -= tl.load(zeros + at, mask=real, other=0.0).to(tl.float32)
        value *= tl.load(scales + at, mask=real, other=0.0).to(tl.float32)
        if HAS_OUTER:
            value *= tl.load(outer + outputs, mask=outputs < num_outputs, other=0.0)
        tl.store(out + outputs.to(tl.int64) * size + columns, value.to(out.dtype.element_ty), mask=real)
