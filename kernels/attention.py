"""Paged attention in Triton. Contract: kernels/reference/attention.py.

Two kernels around one tile step (online softmax over a tile of K and V): `_decode` for sequences of one query token,
cut along the context where the batch alone does not fill the device, and `_prefill` for the others. The query heads of
one KV head share its K and V loads. Grids depend on nothing that lives on the device, so both can be captured.
Scores and sums in float32; the weights are rounded to V's dtype before they multiply it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels import launch

_LOG2_E = 1.4426950408889634

# Numbers, and tensors cut out of larger ones, that differ from step to step: compiled once for any value and alignment.
_VARYING = ["query_starts", "context_lens", "block_tables", "table_stride", "num_splits", "stats_numel", "num_decodes"]


def paged_attention(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, inputs: Any,
                    scale: float) -> torch.Tensor:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    assert q.stride(2) == 1
    assert k_cache.is_contiguous()
    assert v_cache.is_contiguous()
    num_seqs = inputs.context_lens.shape[0]
    num_decodes = num_seqs if inputs.max_query_len == 1 else inputs.num_decodes
    if num_decodes:
        _launch_decode(q, k_cache, v_cache, inputs, num_decodes, scale * _LOG2_E, out)
    if num_decodes < num_seqs:
        _launch_prefill(q, k_cache, v_cache, inputs, num_decodes, scale * _LOG2_E, out)
    return out


def _launch_decode(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, inputs: Any, num_decodes: int,
                   scale: float, out: torch.Tensor) -> None:
    _, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k_cache.shape[1:3]
    group, padded_dim = num_heads // num_kv_heads, max(16, triton.next_power_of_2(head_dim))
    tile = launch.decode_tile(q.device, k_cache.element_size(), padded_dim)
    num_splits = launch.num_splits(q.device, num_decodes * num_kv_heads, inputs.max_context_len)
    if num_splits > 1:
        partial = torch.empty((num_decodes, num_heads, num_splits, head_dim), dtype=torch.float32, device=q.device)
        # Largest score and sum of weights of each split.
        stats = torch.empty((2, num_decodes, num_heads, num_splits), dtype=torch.float32, device=q.device)
    else:
        partial, stats = out, out
    _decode[(num_decodes, num_kv_heads, num_splits)](
        q, k_cache, v_cache, inputs.context_lens, inputs.block_tables, out, partial, stats, scale,
        q.stride(0), q.stride(1), inputs.block_tables.stride(0), num_splits, num_decodes * num_heads * num_splits,
        KV_HEADS=num_kv_heads, GROUP=group, GROUP_PADDED=max(tile.rows, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim, HEAD_DIM_PADDED=padded_dim, BLOCK_SIZE=block_size, COLUMNS=tile.columns, CUT=num_splits > 1,
        MIN_SPLIT=launch.SPLIT_MIN_TOKENS, num_warps=tile.num_warps, num_stages=tile.num_stages)
    if num_splits > 1:
        _merge[(num_decodes, num_heads)](
            partial, stats, inputs.context_lens, out, num_splits, num_decodes * num_heads * num_splits,
            HEADS=num_heads, HEAD_DIM=head_dim, HEAD_DIM_PADDED=padded_dim, COLUMNS=tile.columns,
            SPLITS_PADDED=launch.MAX_SPLITS, MIN_SPLIT=launch.SPLIT_MIN_TOKENS)


def _launch_prefill(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, inputs: Any, num_decodes: int,
                    scale: float, out: torch.Tensor) -> None:
    _, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k_cache.shape[1:3]
    group, padded_dim = num_heads // num_kv_heads, max(16, triton.next_power_of_2(head_dim))
    tile = launch.prefill_tile(q.device, k_cache.element_size(), padded_dim)
    num_seqs = inputs.context_lens.shape[0] - num_decodes
    _prefill[(triton.cdiv(inputs.max_query_len * group, tile.rows), num_kv_heads, num_seqs)](
        q, k_cache, v_cache, inputs.query_starts, inputs.context_lens, inputs.block_tables, out, scale, num_decodes,
        q.stride(0), q.stride(1), inputs.block_tables.stride(0),
        KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, HEAD_DIM_PADDED=padded_dim, BLOCK_SIZE=block_size,
        ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.num_warps, num_stages=tile.num_stages)


@triton.jit
def _tile_step(queries, best, total, acc, start, limits, end, table, k_head, v_head, block_stride, scale,
               HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, COLUMNS: tl.constexpr,
               MASKED: tl.constexpr):
    """One step of the online softmax: positions start .. start + COLUMNS - 1, row r seeing those below limits[r].

    `end` bounds all limits. Without MASKED every row sees every position. Every row sees position `start` of the first
    step, so `best` is finite from then on.
    """
    positions = start + tl.arange(0, COLUMNS)
    dims = tl.arange(0, HEAD_DIM_PADDED)
    if MASKED:
        blocks = tl.load(table + positions // BLOCK_SIZE, mask=positions < end, other=0)
    else:
        blocks = tl.load(table + positions // BLOCK_SIZE)
    offsets = blocks.to(tl.int64) * block_stride + (positions % BLOCK_SIZE) * HEAD_DIM
    inside = (positions < end)[:, None] & (dims < HEAD_DIM)[None, :]
    if MASKED or HEAD_DIM != HEAD_DIM_PADDED:
        keys = tl.load(k_head + offsets[:, None] + dims[None, :], mask=inside, other=0.0)
        values = tl.load(v_head + offsets[:, None] + dims[None, :], mask=inside, other=0.0)
    else:
        keys = tl.load(k_head + offsets[:, None] + dims[None, :])
        values = tl.load(v_head + offsets[:, None] + dims[None, :])
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    if MASKED:
        scores = tl.where(positions[None, :] < limits[:, None], scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, axis=1))
    weights = tl.exp2(scores - new_best[:, None])
    shrink = tl.exp2(best - new_best)
    total = total * shrink + tl.sum(weights, axis=1)
    acc = acc * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    return new_best, total, acc


@triton.jit
def _split_length(context, num_splits, COLUMNS: tl.constexpr, MIN_SPLIT: tl.constexpr):
    """K/V tokens of each split of a sequence: whole tiles, and not so few that a split is not worth it."""
    wanted = tl.maximum(tl.cdiv(context, num_splits), MIN_SPLIT)
    return tl.cdiv(wanted, COLUMNS) * COLUMNS


@triton.jit(do_not_specialize=_VARYING)
def _decode(q, k_cache, v_cache, context_lens, block_tables, out, partial, stats, scale, q_stride, q_head_stride,
            table_stride, num_splits, stats_numel,
            KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, HEAD_DIM: tl.constexpr,
            HEAD_DIM_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, COLUMNS: tl.constexpr, CUT: tl.constexpr,
            MIN_SPLIT: tl.constexpr):
    seq, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    context = tl.load(context_lens + seq)
    length = _split_length(context, num_splits, COLUMNS, MIN_SPLIT) if CUT else context
    start = split * length
    end = tl.minimum(start + length, context)
    rows = tl.arange(0, GROUP_PADDED)
    dims = tl.arange(0, HEAD_DIM_PADDED)
    inside = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    heads = kv_head * GROUP + rows
    if start < end:
        queries = tl.load(q + seq * q_stride + heads[:, None] * q_head_stride + dims[None, :], mask=inside, other=0.0)
        best = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
        total = tl.zeros([GROUP_PADDED], tl.float32)
        acc = tl.zeros([GROUP_PADDED, HEAD_DIM_PADDED], tl.float32)
        limits = tl.zeros([GROUP_PADDED], tl.int32) + end
        table = block_tables + seq * table_stride
        k_head = k_cache + kv_head * (BLOCK_SIZE * HEAD_DIM)
        v_head = v_cache + kv_head * (BLOCK_SIZE * HEAD_DIM)
        block_stride = KV_HEADS * BLOCK_SIZE * HEAD_DIM
        whole = start + (end - start) // COLUMNS * COLUMNS
        for place in range(start, whole, COLUMNS):
            best, total, acc = _tile_step(queries, best, total, acc, place, limits, end, table, k_head, v_head,
                                          block_stride, scale, HEAD_DIM, HEAD_DIM_PADDED, BLOCK_SIZE, COLUMNS, False)
        if whole < end:
            best, total, acc = _tile_step(queries, best, total, acc, whole, limits, end, table, k_head, v_head,
                                          block_stride, scale, HEAD_DIM, HEAD_DIM_PADDED, BLOCK_SIZE, COLUMNS, True)
        result = acc / total[:, None]
        if not CUT:
            places = out + (seq * (KV_HEADS * GROUP) + heads[:, None]) * HEAD_DIM + dims[None, :]
            tl.store(places, result.to(out.dtype.element_ty), mask=inside)
        else:
            entries = (seq * (KV_HEADS * GROUP) + heads) * num_splits + split
            tl.store(partial + entries[:, None] * HEAD_DIM + dims[None, :], result, mask=inside)
            tl.store(stats + entries, best, mask=rows < GROUP)
            tl.store(stats + stats_numel + entries, total, mask=rows < GROUP)
    elif not CUT:
        places = out + (seq * (KV_HEADS * GROUP) + heads[:, None]) * HEAD_DIM + dims[None, :]
        tl.store(places, tl.zeros([GROUP_PADDED, HEAD_DIM_PADDED], out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_VARYING)
def _merge(partial, stats, context_lens, out, num_splits, stats_numel, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
           HEAD_DIM_PADDED: tl.constexpr, COLUMNS: tl.constexpr, SPLITS_PADDED: tl.constexpr,
           MIN_SPLIT: tl.constexpr):
    """The splits' results, weighted by their shares of the whole sum of weights."""
    seq, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    context = tl.load(context_lens + seq)
    used = tl.cdiv(context, _split_length(context, num_splits, COLUMNS, MIN_SPLIT))
    splits = tl.arange(0, SPLITS_PADDED)
    dims = tl.arange(0, HEAD_DIM_PADDED)
    entries = (seq * HEADS + head) * num_splits + splits
    best = tl.load(stats + entries, mask=splits < used, other=float("-inf"))
    total = tl.load(stats + stats_numel + entries, mask=splits < used, other=0.0)
    highest = tl.max(best, axis=0)
    shares = tl.where(splits < used, tl.exp2(best - highest) * total, 0.0)
    inside = (splits < used)[:, None] & (dims < HEAD_DIM)[None, :]
    results = tl.load(partial + entries[:, None] * HEAD_DIM + dims[None, :], mask=inside, other=0.0)
    whole = tl.sum(shares, axis=0)
    result = tl.sum(results * shares[:, None], axis=0) / tl.where(used > 0, whole, 1.0)
    tl.store(out + (seq * HEADS + head) * HEAD_DIM + dims, result.to(out.dtype.element_ty), mask=dims < HEAD_DIM)


@triton.jit(do_not_specialize=_VARYING)
def _prefill(q, k_cache, v_cache, query_starts, context_lens, block_tables, out, scale, num_decodes, q_stride,
             q_head_stride, table_stride,
             KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr,
             BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows are (query token, head of the group), token by token; the longest tiles are started first."""
    seq, kv_head = num_decodes + tl.program_id(2), tl.program_id(1)
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    begin = tl.load(query_starts + seq)
    num_queries = tl.load(query_starts + seq + 1) - begin
    context = tl.load(context_lens + seq)
    if first_row < num_queries * GROUP:
        rows = first_row + tl.arange(0, ROWS)
        tokens = rows // GROUP
        heads = kv_head * GROUP + rows % GROUP
        dims = tl.arange(0, HEAD_DIM_PADDED)
        inside = (tokens < num_queries)[:, None] & (dims < HEAD_DIM)[None, :]
        flat = (begin + tokens).to(tl.int64)
        queries = tl.load(q + flat[:, None] * q_stride + heads[:, None] * q_head_stride + dims[None, :], mask=inside,
                          other=0.0)
        best = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, HEAD_DIM_PADDED], tl.float32)
        earlier = context - num_queries
        # Rows past the end see what the last one sees; a padded sequence (context 0) sees nothing.
        limits = tl.minimum(earlier + tokens + 1, context)
        seen_by_all = tl.maximum(earlier + first_row // GROUP + 1, 0)
        end = tl.minimum(earlier + (first_row + ROWS - 1) // GROUP + 1, context)
        table = block_tables + seq.to(tl.int64) * table_stride
        k_head = k_cache + kv_head * (BLOCK_SIZE * HEAD_DIM)
        v_head = v_cache + kv_head * (BLOCK_SIZE * HEAD_DIM)
        block_stride = KV_HEADS * BLOCK_SIZE * HEAD_DIM
        whole = seen_by_all // COLUMNS * COLUMNS
        for place in range(0, whole, COLUMNS):
            best, total, acc = _tile_step(queries, best, total, acc, place, limits, end, table, k_head, v_head,
                                          block_stride, scale, HEAD_DIM, HEAD_DIM_PADDED, BLOCK_SIZE, COLUMNS, False)
        for place in range(whole, end, COLUMNS):
            best, total, acc = _tile_step(queries, best, total, acc, place, limits, end, table, k_head, v_head,
                                          block_stride, scale, HEAD_DIM, HEAD_DIM_PADDED, BLOCK_SIZE, COLUMNS, True)
        result = acc / tl.where(total > 0, total, 1.0)[:, None]
        places = out + (flat[:, None] * (KV_HEADS * GROUP) + heads[:, None]) * HEAD_DIM + dims[None, :]
        tl.store(places, result.to(out.dtype.element_ty), mask=inside)
