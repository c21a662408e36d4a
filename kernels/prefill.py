"""Attention of sequences with several query tokens, in Triton. Called by kernels/attention.py.

Keys come out of the cache, block by block; those of long prompts that are computed whole are fetched by the copy engine
(tensor descriptors) from where the product left them, in one piece, which is a third faster. Of a cache in 8 bits these
are the same numbers, since kernels/rotary.py rounds them there too.
Scores and sums in float32; the weights are rounded to V's dtype before they multiply it.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from quire.kernels import kv_codes, launch, pdl
from quire.kernels.attention_spec import AttentionSpec
from quire.kernels.attention_tile import IN_EXP2, first_state, paged_step, scale_and_cap, softmax_step

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # before Triton 3.4
    TensorDescriptor = None

# Numbers, and tensors cut out of larger ones, that differ from step to step: compiled once for any value and alignment.
_VARYING = ["query_starts", "context_lens", "block_tables", "table_stride", "first_seq"]


def prefill(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, inputs: Any, num_decodes: int,
            spec: AttentionSpec, own: tuple[torch.Tensor, torch.Tensor] | None, out: torch.Tensor) -> None:
    """`own`: k and v of this step's tokens as rotary_and_cache leaves them, which are in the cache too."""
    _, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k_cache.shape[1:3]
    group, padded_dim = num_heads // num_kv_heads, max(16, triton.next_power_of_2(head_dim))
    num_seqs = inputs.context_lens.shape[0]
    first_whole = num_seqs
    whole_tile = None
    if own is not None and TensorDescriptor is not None and head_dim == padded_dim:
        whole_tile = launch.whole_prefill_tile(q.device, q.element_size(), head_dim, inputs.max_query_len)
        if whole_tile is not None:
            first_whole = max(num_decodes, inputs.first_whole)
    codes = kv_codes.codes_of(k_cache)
    scale, softcap = scale_and_cap(spec, codes)
    sizes = {"KV_HEADS": num_kv_heads, "GROUP": group, "HEAD_DIM": head_dim, "HEAD_DIM_PADDED": padded_dim,
             "BLOCK_SIZE": block_size, "WINDOW": spec.window or 0, "SOFTCAP": softcap,
             "ALIGNED": launch.is_batch_invariant() or codes.kind != "", "KIND": codes.kind, "HOW": codes.how}
    v_scale = spec.v_scale if codes.kind else None
    words = kv_codes.words_of(k_cache), kv_codes.words_of(v_cache)
    for tile, keys, values, first, end in (
            (launch.prefill_tile(q.device, k_cache.element_size(), padded_dim), q, q, num_decodes, first_whole),
            (whole_tile, *(own or (q, q)), first_whole, num_seqs)):
        if first < end and tile is not None:
            whole = tile is whole_tile
            if whole:
                keys, values = (_descriptor(x, tile.columns) for x in (keys, values))
            _prefill[(triton.cdiv(inputs.max_query_len * group, tile.rows), num_kv_heads, end - first)](
                q, keys, values, *words, inputs.query_starts, inputs.context_lens, inputs.block_tables, out,
                spec.slopes, spec.sinks, v_scale, scale, first, q.stride(0), q.stride(1),
                inputs.block_tables.stride(0), **sizes, ROWS=tile.rows, COLUMNS=tile.columns, WHOLE=whole,
                num_warps=tile.num_warps, num_stages=tile.num_stages, **launch.early(q.device))


def _descriptor(x: torch.Tensor, num_rows: int) -> Any:
    """Of x [tokens, heads, head_dim], for pieces of one head and num_rows tokens."""
    tokens, heads, head_dim = x.shape
    assert x.stride(1) == head_dim
    return TensorDescriptor(x, [tokens, heads * head_dim], [x.stride(0), 1], [num_rows, head_dim])


@triton.jit(do_not_specialize=_VARYING)
def _prefill(q, own_keys, own_values, k_cache, v_cache, query_starts, context_lens, block_tables, out, slopes,
             sinks, v_scale, scale, first_seq, q_stride, q_head_stride, table_stride,
             KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr,
             BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ROWS: tl.constexpr,
             COLUMNS: tl.constexpr, WHOLE: tl.constexpr, ALIGNED: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr,
             EARLY: tl.constexpr):
    """Rows are (query token, head of the group), token by token; the longest tiles are started first.

    ALIGNED: a row sees its context in the same steps, whatever rows are in its tile; these begin at even positions.
    """
    pdl.begin(EARLY)
    seq, kv_head = first_seq + tl.program_id(2), tl.program_id(1)
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
        if KIND != "" and not WHOLE:
            queries = kv_codes.beside_codes(queries)
        row_slopes = None if slopes is None else tl.load(slopes + heads) * IN_EXP2
        best, total, acc = first_state(sinks, heads, tokens >= 0, ROWS, HEAD_DIM_PADDED)
        earlier = context - num_queries
        # Rows past the end see what the last one sees; a padded sequence (context 0) sees nothing.
        limits = tl.minimum(earlier + tokens + 1, context)
        first_limit = earlier + first_row // GROUP + 1
        end = tl.minimum(earlier + (first_row + ROWS - 1) // GROUP + 1, context)
        lows = None
        first = None
        if WINDOW > 0:
            lows = limits - WINDOW
            start = tl.maximum(first_limit - WINDOW, 0)
            if ALIGNED:
                first = start
                start = start // COLUMNS * COLUMNS
            # From here to seen_by_all, no row's window or limit cuts a tile.
            inner = start + tl.cdiv(tl.maximum(end - WINDOW - start, 0), COLUMNS) * COLUMNS
            seen_by_all = tl.maximum(start + tl.maximum(first_limit - start, 0) // COLUMNS * COLUMNS, inner)
        else:
            inner = 0
            seen_by_all = tl.maximum(first_limit, 0) // COLUMNS * COLUMNS
        own = limits - 1
        table = block_tables + seq.to(tl.int64) * table_stride
        HEAD_SIZE: tl.constexpr = BLOCK_SIZE * HEAD_DIM if KIND == "" else BLOCK_SIZE * HEAD_DIM // 2
        k_head = k_cache + kv_head * HEAD_SIZE
        v_head = v_cache + kv_head * HEAD_SIZE
        if WINDOW > 0:
            for place in range(start, tl.minimum(inner, end), COLUMNS):
                best, total, acc = _step(queries, best, total, acc, place, lows, limits, end, own, row_slopes, context,
                                         begin, kv_head, own_keys, own_values, table, k_head, v_head, scale, KV_HEADS,
                                         HEAD_DIM, HEAD_DIM_PADDED, BLOCK_SIZE, COLUMNS, SOFTCAP, WHOLE, True, KIND,
                                         HOW, first)
        for place in range(inner, seen_by_all, COLUMNS):
            best, total, acc = _step(queries, best, total, acc, place, lows, limits, end, own, row_slopes, context,
                                     begin, kv_head, own_keys, own_values, table, k_head, v_head, scale, KV_HEADS,
                                     HEAD_DIM, HEAD_DIM_PADDED, BLOCK_SIZE, COLUMNS, SOFTCAP, WHOLE, False, KIND, HOW)
        for place in range(seen_by_all, end, COLUMNS):
            best, total, acc = _step(queries, best, total, acc, place, lows, limits, end, own, row_slopes, context,
                                     begin, kv_head, own_keys, own_values, table, k_head, v_head, scale, KV_HEADS,
                                     HEAD_DIM, HEAD_DIM_PADDED, BLOCK_SIZE, COLUMNS, SOFTCAP, WHOLE, True, KIND, HOW)
        result = acc / tl.where(total > 0, total, 1.0)[:, None]
        if KIND != "":
            result = result * v_scale
        target = out + (flat[:, None] * (KV_HEADS * GROUP) + heads[:, None]) * HEAD_DIM + dims[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _step(queries, best, total, acc, place, lows, limits, end, own, slopes, context, begin, kv_head, own_keys,
          own_values, table, k_head, v_head, scale, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
          HEAD_DIM_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, COLUMNS: tl.constexpr, SOFTCAP: tl.constexpr,
          WHOLE: tl.constexpr, MASKED: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr, first=None):
    if WHOLE:
        column = kv_head * HEAD_DIM
        keys, values = own_keys.load([begin + place, column]), own_values.load([begin + place, column])
        positions = place + tl.arange(0, COLUMNS)
        if MASKED:
            # What follows the sequence's last token may be anything, and 0 * NaN is NaN.
            values = tl.where((positions < context)[:, None], values, 0.0)
        best, total, acc = softmax_step(queries, best, total, acc, keys, values, positions, lows, limits, own, slopes,
                                        scale, SOFTCAP, MASKED)
    else:
        best, total, acc = paged_step(queries, best, total, acc, place, lows, limits, end, own, slopes, table, k_head,
                                      v_head, KV_HEADS * BLOCK_SIZE * HEAD_DIM, scale, HEAD_DIM, HEAD_DIM_PADDED,
                                      BLOCK_SIZE, COLUMNS, SOFTCAP, MASKED, KIND, HOW, first)
    return best, total, acc
