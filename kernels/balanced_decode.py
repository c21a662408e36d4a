"""Attention of sequences with one query token each, in equal shares, in Triton. Called by kernels/attention.py.

All sequences' contexts, cut into tiles, form one list for each KV head, and these lists one list of all; each of a
fixed number of programs takes an equal stretch of it. So none waits for the longest sequence, and a program reads on
from one sequence to the next without a pause. Of the programs that have a part of a sequence, whoever ends last puts
the parts together. `_list` writes the list once a step, for all layers.
Ye et al., "FlashInfer" (2025), section 3.3, schedules in this manner.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from quire.kernels import counters, kv_codes, launch, pdl
from quire.kernels.attention_merge import merge_group
from quire.kernels.attention_spec import AttentionSpec
from quire.kernels.attention_tile import IN_EXP2, first_state, scale_and_cap, softmax_step, softmax_step_of_codes

_SEQS = 1024  # looked through at a time
_TILES = 64  # written at a time
_SKIPPED = tl.constexpr(1 << 18)

# Numbers, and tensors cut out of larger ones, that differ from step to step: compiled once for any value and alignment.
_VARYING = ["context_lens", "block_ids", "seqs", "marks", "first_tiles", "table_stride", "num_decodes"]


class Tiles(NamedTuple):
    """The list of one KV head. [tiles] int32 unless it says otherwise."""

    block_ids: torch.Tensor  # [tiles, blocks of a tile]
    seqs: torch.Tensor
    # tokens * 4, + 1 for a sequence's first tile, + 2 for its last; with a window, + _SKIPPED * how many of the first
    # tile's tokens lie before it
    marks: torch.Tensor
    first_tiles: torch.Tensor  # [decodes + 1], of each sequence; then how many there are


def balanced_decode(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, inputs: Any, num_decodes: int,
                    spec: AttentionSpec, tile: launch.BalancedTile, out: torch.Tensor) -> None:
    """The newest keys and values are in the cache already."""
    _, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k_cache.shape[1:3]
    group, padded_dim = num_heads // num_kv_heads, max(16, triton.next_power_of_2(head_dim))
    window = spec.window or 0
    key = f"{__name__}, window {window}"
    tiles = inputs.scratch.get(key)
    if tiles is None:
        tiles = inputs.scratch[key] = _tiles(inputs, num_decodes, block_size, tile.columns, window)
    codes = kv_codes.codes_of(k_cache)
    scale, softcap = scale_and_cap(spec, codes)
    v_scale = spec.v_scale if codes.kind else None
    num_programs = tile.num_programs * launch.num_multiprocessors(q.device)
    # Of each program: what it has of a sequence that it begins and another ends; and of one that another begins.
    partial = torch.empty((group, 2, num_programs, head_dim), dtype=torch.float32, device=q.device)
    stats = torch.empty((2, group, 2, num_programs), dtype=torch.float32, device=q.device)
    done = counters.at_zero(q.device, num_decodes * num_kv_heads)
    _balanced[(num_programs,)](
        q, kv_codes.words_of(k_cache), kv_codes.words_of(v_cache), *tiles,
        None if spec.slopes is None else inputs.context_lens, out, partial, stats, done,
        spec.slopes, spec.sinks, v_scale, scale, q.stride(0), q.stride(1), num_decodes,
        KV_HEADS=num_kv_heads, GROUP=group, GROUP_PADDED=max(16, triton.next_power_of_2(group)), HEAD_DIM=head_dim,
        HEAD_DIM_PADDED=padded_dim, BLOCK_SIZE=block_size, COLUMNS=tile.columns, MIN_TILES=launch.BALANCED_MIN_TILES,
        WINDOW=window, SOFTCAP=softcap, KIND=codes.kind, HOW=codes.how, num_warps=tile.num_warps,
        num_stages=tile.num_stages, **launch.early(q.device))


def _tiles(inputs: Any, num_decodes: int, block_size: int, columns: int, window: int) -> Tiles:
    device = inputs.context_lens.device
    max_seen = min(inputs.max_context_len, window + block_size - 1) if window else inputs.max_context_len
    room = num_decodes * triton.cdiv(max(max_seen, 1), columns)
    sizes = (room * (columns // block_size), room, room, num_decodes + 1)
    tiles = Tiles(*torch.empty(sum(sizes), dtype=torch.int32, device=device).split(sizes))
    _list[(num_decodes,)](inputs.context_lens, inputs.block_tables, *tiles, inputs.block_tables.stride(0), num_decodes,
                          BLOCK_SIZE=block_size, COLUMNS=columns, WINDOW=window, SEQS=_SEQS, TILES=_TILES,
                          num_warps=4, **launch.early(device))
    return tiles


@triton.jit(do_not_specialize=_VARYING)
def _list(context_lens, block_tables, block_ids, seqs, marks, first_tiles, table_stride, num_decodes,
          BLOCK_SIZE: tl.constexpr, COLUMNS: tl.constexpr, WINDOW: tl.constexpr, SEQS: tl.constexpr,
          TILES: tl.constexpr, EARLY: tl.constexpr):
    """A program writes a sequence's tiles. One without context has a tile of no token, which makes its zeros."""
    pdl.begin(EARLY)
    seq = tl.program_id(0)
    context = tl.load(context_lens + seq)
    first = 0
    for start in range(0, seq, SEQS):
        earlier = start + tl.arange(0, SEQS)
        lens = tl.load(context_lens + earlier, mask=earlier < seq, other=0)
        lens -= _first_position(lens, BLOCK_SIZE, WINDOW)
        first += tl.sum(tl.where(earlier < seq, tl.maximum(tl.cdiv(lens, COLUMNS), 1), 0))
    begin = _first_position(context, BLOCK_SIZE, WINDOW)
    length = context - begin
    num_tiles = tl.maximum(tl.cdiv(length, COLUMNS), 1)
    tl.store(first_tiles + seq, first)
    if seq == num_decodes - 1:
        tl.store(first_tiles + num_decodes, first + num_tiles)
    BLOCKS: tl.constexpr = COLUMNS // BLOCK_SIZE
    for start in range(0, num_tiles, TILES):
        tile = start + tl.arange(0, TILES)
        here = tile < num_tiles
        tokens = tl.maximum(tl.minimum(length - tile * COLUMNS, COLUMNS), 0)
        tl.store(seqs + first + tile, tl.zeros([TILES], tl.int32) + seq, mask=here)
        mark = tokens * 4 + (tile == 0) + 2 * (tile == num_tiles - 1)
        if WINDOW > 0:
            mark += tl.where(tile == 0, tl.maximum(length - WINDOW, 0) * _SKIPPED, 0)
        tl.store(marks + first + tile, mark, mask=here)
        column = tile[:, None] * BLOCKS + tl.arange(0, BLOCKS)[None, :]
        entry = tl.load(block_tables + seq.to(tl.int64) * table_stride + begin // BLOCK_SIZE + column,
                        mask=column * BLOCK_SIZE < length, other=0)
        tl.store(block_ids + first * BLOCKS + column, entry, mask=here[:, None])


@triton.jit
def _first_position(context, BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr):
    """Where the first block begins of which the last of so many tokens sees anything."""
    if WINDOW > 0:
        position = tl.maximum(context - WINDOW, 0) // BLOCK_SIZE * BLOCK_SIZE
    else:
        position = 0
    return position


@triton.jit(do_not_specialize=_VARYING)
def _balanced(q, k_cache, v_cache, block_ids, seqs, marks, first_tiles, context_lens, out, partial, stats, done, slopes,
              sinks, v_scale, scale, q_stride, q_head_stride, num_decodes,
              KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, HEAD_DIM: tl.constexpr,
              HEAD_DIM_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, COLUMNS: tl.constexpr, MIN_TILES: tl.constexpr,
              WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr, EARLY: tl.constexpr):
    """`context_lens` is None without `slopes`. With KIND, HOW the caches hold codes, two tokens in a word."""
    pdl.begin(EARLY)
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    num_tiles = tl.load(first_tiles + num_decodes)
    share = tl.maximum(tl.cdiv(num_tiles * KV_HEADS, num_programs), MIN_TILES)
    begin = program * share
    end = tl.minimum(begin + share, num_tiles * KV_HEADS)
    # What the merging needs to know, asked for now.
    item, first_program, num_parts = _parts(begin, begin < end, seqs, first_tiles, num_tiles, share, KV_HEADS)
    last_item, last_first_program, last_num_parts = _parts(end - 1, begin < end, seqs, first_tiles, num_tiles, share,
                                                           KV_HEADS)
    rows = tl.arange(0, GROUP_PADDED)
    dims = tl.arange(0, HEAD_DIM_PADDED)
    if KIND == "":
        columns = tl.arange(0, COLUMNS)
    else:
        columns = 2 * tl.arange(0, COLUMNS // 2)  # of the words' even tokens
    TOKENS: tl.constexpr = 1 if KIND == "" else 2  # of what is loaded as one
    wanted = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    best = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PADDED], tl.float32)
    acc = tl.zeros([GROUP_PADDED, HEAD_DIM_PADDED], tl.float32)
    begun = False  # whether this program has the first tile of the sequence that it is at
    for place in range(begin, end):  # pipelined by Triton as long as no other loop is in it
        kv_head, tile = place // num_tiles, place % num_tiles
        seq = tl.load(seqs + tile).to(tl.int64)
        mark = tl.load(marks + tile)
        tokens, is_first, is_last = mark >> 2, (mark & 1) != 0, (mark & 2) != 0
        blocks = tl.load(block_ids + tile * (COLUMNS // BLOCK_SIZE) + columns // BLOCK_SIZE).to(tl.int64)
        offsets = ((blocks * KV_HEADS + kv_head) * (BLOCK_SIZE * HEAD_DIM // TOKENS)
                   + columns % BLOCK_SIZE // TOKENS * HEAD_DIM)
        heads = kv_head * GROUP + rows
        queries = tl.load(q + seq * q_stride + heads[:, None] * q_head_stride + dims[None, :], mask=wanted, other=0.0)
        lows = None
        seen = columns < tokens
        if WINDOW > 0:
            skipped = mark // _SKIPPED
            tokens = tokens - skipped * (_SKIPPED // 4)
            lows = tl.zeros([GROUP_PADDED], tl.int32) + skipped
            seen = (columns + (TOKENS - 1) >= skipped) & (columns < tokens)
        row_slopes, own = None, None
        if slopes is not None:
            row_slopes = tl.load(slopes + heads, mask=rows < GROUP, other=0.0) * IN_EXP2
            context = tl.load(context_lens + seq)
            start = _first_position(context, BLOCK_SIZE, WINDOW) + (tile - tl.load(first_tiles + seq)) * COLUMNS
            own = tl.zeros([GROUP_PADDED], tl.int32) + (context - 1 - start)
        inside = seen[:, None] & (dims < HEAD_DIM)[None, :]
        keys = tl.load(k_cache + offsets[:, None] + dims[None, :], mask=inside, other=0)
        values = tl.load(v_cache + offsets[:, None] + dims[None, :], mask=inside, other=0)
        begun = begun | is_first
        first_best, first_total, _ = first_state(sinks, heads, rows < GROUP, GROUP_PADDED, HEAD_DIM_PADDED)
        best = tl.where(is_first, first_best, best)
        # Not left to the best one's change: the sequence before may have had NaN.
        total = tl.where(is_first, first_total, total)
        acc = tl.where(is_first, 0.0, acc)
        limits = tl.zeros([GROUP_PADDED], tl.int32) + tl.maximum(tokens, 1)  # 1: of zeros
        if KIND == "":
            best, total, acc = softmax_step(queries, best, total, acc, keys, values, columns, lows, limits, own,
                                            row_slopes, scale, SOFTCAP, True)
        else:
            best, total, acc = softmax_step_of_codes(kv_codes.beside_codes(queries), best, total, acc, keys, values,
                                                     columns, lows, limits, own, row_slopes, scale, SOFTCAP, True, KIND,
                                                     HOW)
        if is_last | (place == end - 1):
            result = acc / total[:, None]
            if KIND != "":
                result = result * v_scale
            if is_last & begun:
                tl.store(out + ((seq * KV_HEADS + kv_head) * GROUP + rows)[:, None] * HEAD_DIM + dims[None, :],
                         result.to(out.dtype.element_ty), mask=wanted)
            else:
                entries = (rows * 2 + tl.where(begun, 0, 1)) * num_programs + program
                tl.store(partial + entries[:, None] * HEAD_DIM + dims[None, :], result, mask=wanted)
                tl.store(stats + entries, best, mask=rows < GROUP)
                tl.store(stats + 2 * GROUP * num_programs + entries, total, mask=rows < GROUP)
            begun = False
    if num_parts + last_num_parts > 2:
        tl.debug_barrier()  # all threads' parts are written before one of them says so
        if num_parts > 1:
            _merge_if_last(item, first_program, num_parts, out, partial, stats, done, GROUP, HEAD_DIM, HEAD_DIM_PADDED)
        if (last_num_parts > 1) & (last_item != item):
            _merge_if_last(last_item, last_first_program, last_num_parts, out, partial, stats, done, GROUP, HEAD_DIM,
                           HEAD_DIM_PADDED)


@triton.jit
def _parts(place, exists, seqs, first_tiles, num_tiles, share, KV_HEADS: tl.constexpr):
    """Which sequence and KV head is at this place of the whole list, the first program that has a part, and how many.
    """
    kv_head = place // num_tiles
    seq = tl.load(seqs + place % num_tiles, mask=exists, other=0)
    start = kv_head * num_tiles + tl.load(first_tiles + seq)
    end = kv_head * num_tiles + tl.load(first_tiles + seq + 1)
    first_program = start // share
    return seq * KV_HEADS + kv_head, first_program, tl.where(exists, (end - 1) // share - first_program + 1, 1)


@triton.jit
def _merge_if_last(item, first_program, num_parts, out, partial, stats, done, GROUP: tl.constexpr,
                   HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr):
    if tl.atomic_add(done + item, 1) == num_parts - 1:
        tl.store(done + item, 0)
        num_programs = tl.num_programs(0)
        merge_group(partial + first_program * HEAD_DIM, stats + first_program,
                    out + item.to(tl.int64) * (GROUP * HEAD_DIM), 0, 1, num_parts, num_programs + 1, 2 * num_programs,
                    2 * GROUP * num_programs, GROUP, HEAD_DIM, HEAD_DIM_PADDED, VALUES=1024)
