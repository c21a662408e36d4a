"""Attention of sequences with one query token each, a program for each, in Triton. Called by kernels/attention.py.

`_decode` takes a sequence's context in parts where the batch alone does not fill the device, and whoever of a
sequence's programs ends last merges the parts. `_shared` reads the blocks that sequences begin with in common once for
all of them; `_merge` then puts own and shared parts together. The query heads of one KV head share its K and V loads.
Scores and sums in float32; the weights are rounded to V's dtype before they multiply it.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from quire.kernels import counters, kv_codes, launch, pdl
from quire.kernels.attention_merge import merge_group
from quire.kernels.attention_spec import AttentionSpec, Fresh
from quire.kernels.attention_tile import IN_EXP2, first_state, paged_step, scale_and_cap

_MERGED_VALUES = tl.constexpr(8192)  # held at a time

# Numbers, and tensors cut out of larger ones, that differ from step to step: compiled once for any value and alignment.
_VARYING = ["query_starts", "context_lens", "shared_lens", "members", "block_tables", "table_stride", "own_splits",
            "num_splits", "stats_numel", "num_decodes", "k", "v", "turn_rows"]


def decode(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, inputs: Any, num_decodes: int,
           spec: AttentionSpec, fresh: Fresh | None, out: torch.Tensor) -> None:
    _, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k_cache.shape[1:3]
    group, padded_dim = num_heads // num_kv_heads, max(16, triton.next_power_of_2(head_dim))
    tile = launch.decode_tile(q.device, k_cache.element_size(), padded_dim, group)
    max_seen = inputs.max_context_len if spec.window is None else min(inputs.max_context_len, spec.window)
    own_splits = launch.num_splits(q.device, num_decodes * num_kv_heads, max_seen)
    shared = inputs.shared if spec.window is None else None
    shared_splits = 0
    if shared is not None:
        wide = launch.prefill_tile(q.device, k_cache.element_size(), padded_dim)
        num_tiles = triton.cdiv(num_decodes * group, wide.rows)
        shared_splits = launch.num_shared_splits(q.device, num_tiles * num_kv_heads, inputs.max_context_len)
    num_splits = own_splits + shared_splits
    shared_lens, members = shared or (inputs.context_lens, inputs.context_lens)
    if num_splits > 1:
        partial = torch.empty((num_decodes, num_heads, num_splits, head_dim), dtype=torch.float32, device=q.device)
        # Largest score and sum of weights of each split.
        stats = torch.empty((2, num_decodes, num_heads, num_splits), dtype=torch.float32, device=q.device)
    else:
        partial, stats = out, out
    stats_numel = num_decodes * num_heads * num_splits
    done = counters.at_zero(q.device, num_decodes * num_kv_heads)
    k, v, rotary = fresh or (q, q, None)
    assert k.stride() == v.stride()
    table, half, interleaved = (q, 0, False) if rotary is None else (rotary.table, rotary.half, rotary.interleaved)
    turn_rows = inputs.positions if rotary is not None and rotary.moved else None
    codes = kv_codes.codes_of(k_cache)
    scale, softcap = scale_and_cap(spec, codes)
    k_factor, v_factor, v_scale = (1 / spec.k_scale, 1 / spec.v_scale, spec.v_scale) if codes.kind else (None,) * 3
    k_cache, v_cache = kv_codes.words_of(k_cache), kv_codes.words_of(v_cache)
    sizes = {"GROUP": group, "HEAD_DIM": head_dim, "HEAD_DIM_PADDED": padded_dim, "BLOCK_SIZE": block_size,
             "HALF": half, "INTERLEAVED": interleaved, "SOFTCAP": softcap, "KIND": codes.kind, "HOW": codes.how}
    early = launch.early(q.device)
    _decode[(num_decodes, num_kv_heads, own_splits)](
        q, k, v, table, k_cache, v_cache, inputs.context_lens, shared_lens, inputs.block_tables, out, partial, stats,
        done, spec.slopes, spec.sinks, turn_rows, k_factor, v_factor, v_scale, scale, q.stride(0), q.stride(1),
        k.stride(0), k.stride(1), table.stride(0), inputs.block_tables.stride(0), own_splits, num_splits, stats_numel,
        KV_HEADS=num_kv_heads, GROUP_PADDED=tile.rows, COLUMNS=tile.columns,
        CUT=num_splits > 1, SHARED=shared_splits > 0, FRESH=fresh is not None, WINDOW=spec.window or 0,
        MIN_SPLIT=launch.SPLIT_MIN_TOKENS, **sizes, num_warps=tile.num_warps, num_stages=tile.num_stages, **early)
    if shared_splits:
        _shared[(num_tiles, num_kv_heads, shared_splits)](
            q, table, k_cache, v_cache, inputs.context_lens, shared_lens, members, inputs.block_tables, partial,
            stats, spec.slopes, turn_rows, v_scale, scale, q.stride(0), q.stride(1), table.stride(0),
            inputs.block_tables.stride(0), num_decodes, own_splits, num_splits, stats_numel,
            KV_HEADS=num_kv_heads, ROWS=wide.rows, COLUMNS=wide.columns, **sizes, num_warps=wide.num_warps,
            num_stages=wide.num_stages, **early)
        _merge[(num_decodes, num_kv_heads)](
            partial, stats, inputs.context_lens, shared_lens, out, own_splits, num_splits, stats_numel,
            KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, HEAD_DIM_PADDED=padded_dim, COLUMNS=tile.columns,
            SHARED_COLUMNS=wide.columns, MIN_SPLIT=launch.SPLIT_MIN_TOKENS, **early)


@triton.jit
def _split_length(context, num_splits, COLUMNS: tl.constexpr, MIN_SPLIT: tl.constexpr):
    """K/V tokens of each split of a sequence: whole tiles, and not so few that a split is not worth it."""
    wanted = tl.maximum(tl.cdiv(context, num_splits), MIN_SPLIT)
    return tl.cdiv(wanted, COLUMNS) * COLUMNS


@triton.jit(do_not_specialize=_VARYING)
def _decode(q, k, v, angles, k_cache, v_cache, context_lens, shared_lens, block_tables, out, partial, stats, done,
            slopes, sinks, turn_rows, k_factor, v_factor, v_scale, scale, q_stride, q_head_stride, k_stride,
            k_head_stride, angles_stride, table_stride, own_splits, num_splits, stats_numel,
            KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, HEAD_DIM: tl.constexpr,
            HEAD_DIM_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, HALF: tl.constexpr,
            INTERLEAVED: tl.constexpr, SOFTCAP: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr,
            COLUMNS: tl.constexpr, CUT: tl.constexpr, SHARED: tl.constexpr, FRESH: tl.constexpr, WINDOW: tl.constexpr,
            MIN_SPLIT: tl.constexpr, EARLY: tl.constexpr):
    """With FRESH, q, k and v come as they left the product: HALF pairs of dimensions are still to be rotated, and the
    newest k and v to be written. Sequences turn by row turn_rows[seq] of the angles, or without it by their place."""
    pdl.begin(EARLY)
    seq, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    context = tl.load(context_lens + seq)
    begin = tl.load(shared_lens + seq) if SHARED else 0
    low = None
    if WINDOW > 0:
        begin = tl.maximum(context - WINDOW, 0)
        if KIND != "":
            low = begin
            begin = begin // 2 * 2  # words are of two tokens
    length = _split_length(context - begin, own_splits, COLUMNS, MIN_SPLIT) if CUT else context
    start = begin + split * length
    end = tl.minimum(start + length, context)
    rows = tl.arange(0, GROUP_PADDED)
    dims = tl.arange(0, HEAD_DIM_PADDED)
    inside = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    heads = kv_head * GROUP + rows
    places = out + (seq * (KV_HEADS * GROUP) + heads[:, None]) * HEAD_DIM + dims[None, :]
    if start < end:
        table = block_tables + seq * table_stride
        turn_row = context - 1 if turn_rows is None else tl.load(turn_rows + seq)
        turns = angles + turn_row.to(tl.int64) * angles_stride
        queries = _rotated(q + seq * q_stride + heads[:, None] * q_head_stride, turns, dims[None, :], inside, HALF,
                           INTERLEAVED)
        if FRESH & (end == context):
            block = tl.load(table + (context - 1) // BLOCK_SIZE).to(tl.int64)
            target = (block * KV_HEADS + kv_head) * (BLOCK_SIZE * HEAD_DIM) + (context - 1) % BLOCK_SIZE * HEAD_DIM
            newest = seq * k_stride + kv_head * k_head_stride
            if KIND == "":
                tl.store(k_cache + target + dims, _rotated(k + newest, turns, dims, dims < HEAD_DIM, HALF,
                                                           INTERLEAVED), mask=dims < HEAD_DIM)
                tl.store(v_cache + target + dims, tl.load(v + newest + dims, mask=dims < HEAD_DIM, other=0.0),
                         mask=dims < HEAD_DIM)
            else:
                key = _rotated(k + newest, turns, dims, dims < HEAD_DIM, HALF, INTERLEAVED)
                value = tl.load(v + newest + dims, mask=dims < HEAD_DIM, other=0.0)
                place = (context - 1) % BLOCK_SIZE
                kv_codes.store_codes(k_cache, block * KV_HEADS + kv_head, place, dims, key, k_factor, dims < HEAD_DIM,
                                     KIND, BLOCK_SIZE, HEAD_DIM)
                kv_codes.store_codes(v_cache, block * KV_HEADS + kv_head, place, dims, value, v_factor,
                                     dims < HEAD_DIM, KIND, BLOCK_SIZE, HEAD_DIM)
            tl.debug_barrier()  # the last tile reads them back
        row_slopes = None if slopes is None else tl.load(slopes + heads, mask=rows < GROUP, other=0.0) * IN_EXP2
        own = tl.zeros([GROUP_PADDED], tl.int32) + (context - 1)
        best, total, acc = first_state(sinks, heads, (rows < GROUP) & (split == 0), GROUP_PADDED, HEAD_DIM_PADDED)
        if KIND != "":
            queries = kv_codes.beside_codes(queries)
        best, total, acc = _attend(queries, best, total, acc, start, end, own, row_slopes, table, k_cache, v_cache,
                                   kv_head, scale, KV_HEADS, HEAD_DIM, HEAD_DIM_PADDED, BLOCK_SIZE, GROUP_PADDED,
                                   COLUMNS, SOFTCAP, KIND, HOW, low)
        result = acc / total[:, None]
        if KIND != "":
            result = result * v_scale
        alone = (not SHARED) & (length >= context - begin)
        if alone:
            tl.store(places, result.to(out.dtype.element_ty), mask=inside)
        elif CUT:
            entries = (seq * (KV_HEADS * GROUP) + heads) * num_splits + split
            tl.store(partial + entries[:, None] * HEAD_DIM + dims[None, :], result, mask=inside)
            tl.store(stats + entries, best, mask=rows < GROUP)
            tl.store(stats + stats_numel + entries, total, mask=rows < GROUP)
            if not SHARED:
                tl.debug_barrier()  # all threads' parts are written before one of them says so
                used = tl.cdiv(context - begin, length)
                counter = done + seq * KV_HEADS + kv_head
                if tl.atomic_add(counter, 1) == used - 1:
                    tl.store(counter, 0)
                    merge_group(partial, stats, out, (seq * KV_HEADS + kv_head) * GROUP, used, used, 0, num_splits,
                                stats_numel, GROUP, HEAD_DIM, HEAD_DIM_PADDED, VALUES=_MERGED_VALUES)
    elif (not SHARED) & (split == 0):
        tl.store(places, tl.zeros([GROUP_PADDED, HEAD_DIM_PADDED], out.dtype.element_ty), mask=inside)


@triton.jit
def _rotated(start, turns, dims, inside, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """A head's values behind `start`, turned by the cosines and then sines behind `turns` (kernels/rotary.py)."""
    value = tl.load(start + dims, mask=inside, other=0.0)
    if HALF > 0:
        turned = dims < 2 * HALF
        lower = dims % 2 == 0 if INTERLEAVED else dims < HALF
        apart: tl.constexpr = 1 if INTERLEAVED else HALF
        partner = tl.load(start + tl.where(lower, dims + apart, dims - apart), mask=inside & turned, other=0.0)
        partner = partner.to(tl.float32)
        place = dims // 2 if INTERLEAVED else tl.where(lower, dims, dims - HALF)
        cos = tl.load(turns + place, mask=turned, other=1.0)
        sin = tl.load(turns + HALF + place, mask=turned, other=0.0)
        value = (value.to(tl.float32) * cos + tl.where(lower, -partner, partner) * sin).to(value.dtype)
    return value


@triton.jit
def _attend(queries, best, total, acc, start, end, own, slopes, table, k_cache, v_cache, kv_head, scale,
            KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
            ROWS: tl.constexpr, COLUMNS: tl.constexpr, SOFTCAP: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr,
            low=None):
    """Rows of queries over positions start .. end - 1, all of which each row sees, but for one before `low`."""
    limits = tl.zeros([ROWS], tl.int32) + end
    HEAD_SIZE: tl.constexpr = BLOCK_SIZE * HEAD_DIM if KIND == "" else BLOCK_SIZE * HEAD_DIM // 2
    k_head = k_cache + kv_head * HEAD_SIZE
    v_head = v_cache + kv_head * HEAD_SIZE
    block_stride = KV_HEADS * BLOCK_SIZE * HEAD_DIM
    whole = start + (end - start) // COLUMNS * COLUMNS
    lows = None
    if low is not None:
        lows = tl.zeros([ROWS], tl.int32) + low
    for place in range(start, whole, COLUMNS):
        best, total, acc = paged_step(queries, best, total, acc, place, lows, limits, end, own, slopes, table,
                                      k_head, v_head, block_stride, scale, HEAD_DIM, HEAD_DIM_PADDED, BLOCK_SIZE,
                                      COLUMNS, SOFTCAP, low is not None, KIND, HOW, low)
    if whole < end:
        best, total, acc = paged_step(queries, best, total, acc, whole, lows, limits, end, own, slopes, table,
                                      k_head, v_head, block_stride, scale, HEAD_DIM, HEAD_DIM_PADDED, BLOCK_SIZE,
                                      COLUMNS, SOFTCAP, True, KIND, HOW, low)
    return best, total, acc


@triton.jit(do_not_specialize=_VARYING)
def _shared(q, angles, k_cache, v_cache, context_lens, shared_lens, members, block_tables, partial, stats, slopes,
            turn_rows, v_scale, scale, q_stride, q_head_stride, angles_stride, table_stride, num_decodes, own_splits,
            num_splits, stats_numel,
            KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr,
            BLOCK_SIZE: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, SOFTCAP: tl.constexpr,
            KIND: tl.constexpr, HOW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EARLY: tl.constexpr):
    """Rows are (member, head of the group); members are packed to the front, then comes -1."""
    pdl.begin(EARLY)
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(members).to(tl.int64)
    here = tl.load(members + tile * ROWS // GROUP)
    if (first >= 0) & (here >= 0):
        shared = tl.load(shared_lens + first)
        length = _shared_length(shared, num_splits - own_splits, COLUMNS)
        start = split * length
        end = tl.minimum(start + length, shared)
        if start < end:
            rows = tile * ROWS + tl.arange(0, ROWS)
            dims = tl.arange(0, HEAD_DIM_PADDED)
            seqs = tl.load(members + rows // GROUP, mask=rows // GROUP < num_decodes, other=-1).to(tl.int64)
            heads = kv_head * GROUP + rows % GROUP
            inside = (seqs >= 0)[:, None] & (dims < HEAD_DIM)[None, :]
            positions = tl.load(context_lens + seqs, mask=seqs >= 0, other=1).to(tl.int64) - 1
            if turn_rows is None:
                turns = positions
            else:
                turns = tl.load(turn_rows + seqs, mask=seqs >= 0, other=0).to(tl.int64)
            queries = _rotated(q + seqs[:, None] * q_stride + heads[:, None] * q_head_stride,
                               angles + turns[:, None] * angles_stride, dims[None, :], inside, HALF, INTERLEAVED)
            row_slopes = None if slopes is None else tl.load(slopes + heads) * IN_EXP2
            best, total, acc = first_state(None, heads, seqs >= 0, ROWS, HEAD_DIM_PADDED)  # sinks count with own splits
            if KIND != "":
                queries = kv_codes.beside_codes(queries)
            best, total, acc = _attend(queries, best, total, acc, start, end, positions, row_slopes,
                                       block_tables + first * table_stride, k_cache, v_cache, kv_head, scale, KV_HEADS,
                                       HEAD_DIM, HEAD_DIM_PADDED, BLOCK_SIZE, ROWS, COLUMNS, SOFTCAP, KIND, HOW)
            if KIND != "":
                acc = acc * v_scale
            entries = (seqs * (KV_HEADS * GROUP) + heads) * num_splits + own_splits + split
            tl.store(partial + entries[:, None] * HEAD_DIM + dims[None, :], acc / total[:, None], mask=inside)
            tl.store(stats + entries, best, mask=seqs >= 0)
            tl.store(stats + stats_numel + entries, total, mask=seqs >= 0)


@triton.jit
def _shared_length(shared, num_splits, COLUMNS: tl.constexpr):
    return tl.cdiv(tl.cdiv(shared, num_splits), COLUMNS) * COLUMNS


@triton.jit(do_not_specialize=_VARYING)
def _merge(partial, stats, context_lens, shared_lens, out, own_splits, num_splits, stats_numel,
           KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr,
           COLUMNS: tl.constexpr, SHARED_COLUMNS: tl.constexpr, MIN_SPLIT: tl.constexpr, EARLY: tl.constexpr):
    """Own and shared splits together."""
    pdl.begin(EARLY)
    seq, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    shared = tl.load(shared_lens + seq)
    own = tl.load(context_lens + seq) - shared
    length = _shared_length(shared, num_splits - own_splits, SHARED_COLUMNS)
    used = tl.cdiv(own, _split_length(own, own_splits, COLUMNS, MIN_SPLIT))
    used_shared = tl.where(shared > 0, tl.cdiv(shared, tl.maximum(length, 1)), 0)
    merge_group(partial, stats, out, (seq * KV_HEADS + kv_head) * GROUP, used, used + used_shared, own_splits,
                num_splits, stats_numel, GROUP, HEAD_DIM, HEAD_DIM_PADDED, VALUES=_MERGED_VALUES)
