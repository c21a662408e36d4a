"""The online softmax over one tile of K and V, on which kernels/decode.py and kernels/prefill.py are built.

Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Dao, "FlashAttention-2" (2023), algorithm 1.
"""

import triton
import triton.language as tl

from quire.kernels import kv_codes
from quire.kernels.attention_spec import AttentionSpec

LOG2_E = 1.4426950408889634  # scores are scaled by it, since exp2 is the faster one
IN_EXP2 = tl.constexpr(LOG2_E)


def scale_and_cap(spec: AttentionSpec, codes: kv_codes.Codes) -> tuple[float, float]:
    """`scale` and SOFTCAP of softmax_step, where keys are those of a cache with such codes."""
    scale = spec.scale * spec.k_scale if codes.kind else spec.scale
    if spec.softcap:
        return 2 * LOG2_E * scale / spec.softcap, LOG2_E * spec.softcap
    return LOG2_E * scale, 0.0


@triton.jit
def paged_step(queries, best, total, acc, start, lows, limits, end, own, slopes, table, k_head, v_head, block_stride,
               scale, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
               COLUMNS: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr, KIND: tl.constexpr,
               HOW: tl.constexpr, first=None):
    """One step over positions start .. start + COLUMNS - 1 of the cache, row r seeing those below limits[r].

    `end` bounds all limits, and `first` all lows, where the step may begin before: what lies there may be anything.
    Without MASKED every row sees every position. With KIND and HOW the cache holds codes, and `start` is even;
    block_stride counts numbers. The rest is as in softmax_step.
    """
    if KIND != "":
        return _paged_step_of_codes(queries, best, total, acc, start, lows, limits, end, own, slopes, table, k_head,
                                    v_head, block_stride, scale, HEAD_DIM, HEAD_DIM_PADDED, BLOCK_SIZE, COLUMNS,
                                    SOFTCAP, MASKED, KIND, HOW, first)
    else:
        return _paged_step_of_numbers(queries, best, total, acc, start, lows, limits, end, own, slopes, table, k_head,
                                      v_head, block_stride, scale, HEAD_DIM, HEAD_DIM_PADDED, BLOCK_SIZE, COLUMNS,
                                      SOFTCAP, MASKED, first)


@triton.jit
def _paged_step_of_numbers(queries, best, total, acc, start, lows, limits, end, own, slopes, table, k_head, v_head,
                           block_stride, scale, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr,
                           BLOCK_SIZE: tl.constexpr, COLUMNS: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr,
                           first):
    positions = start + tl.arange(0, COLUMNS)
    dims = tl.arange(0, HEAD_DIM_PADDED)
    if MASKED:
        blocks = tl.load(table + positions // BLOCK_SIZE, mask=positions < end, other=0)
    else:
        blocks = tl.load(table + positions // BLOCK_SIZE)
    offsets = blocks.to(tl.int64) * block_stride + (positions % BLOCK_SIZE) * HEAD_DIM
    inside = (positions < end)[:, None] & (dims < HEAD_DIM)[None, :]
    if first is not None:
        inside = inside & (positions >= first)[:, None]
    if MASKED or HEAD_DIM != HEAD_DIM_PADDED:
        keys = tl.load(k_head + offsets[:, None] + dims[None, :], mask=inside, other=0.0)
        values = tl.load(v_head + offsets[:, None] + dims[None, :], mask=inside, other=0.0)
    else:
        keys = tl.load(k_head + offsets[:, None] + dims[None, :])
        values = tl.load(v_head + offsets[:, None] + dims[None, :])
    return softmax_step(queries, best, total, acc, keys, values, positions, lows, limits, own, slopes, scale, SOFTCAP,
                        MASKED)


@triton.jit
def _paged_step_of_codes(queries, best, total, acc, start, lows, limits, end, own, slopes, table, k_head, v_head,
                         block_stride, scale, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr,
                         BLOCK_SIZE: tl.constexpr, COLUMNS: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr,
                         KIND: tl.constexpr, HOW: tl.constexpr, first):
    """The position behind `end`, or before `first`, that shares a word with one that is seen may hold any number."""
    positions = start + 2 * tl.arange(0, COLUMNS // 2)  # of the words' even tokens
    dims = tl.arange(0, HEAD_DIM_PADDED)
    if MASKED:
        blocks = tl.load(table + positions // BLOCK_SIZE, mask=positions < end, other=0)
    else:
        blocks = tl.load(table + positions // BLOCK_SIZE)
    offsets = blocks.to(tl.int64) * (block_stride // 2) + (positions % BLOCK_SIZE // 2) * HEAD_DIM
    inside = (positions < end)[:, None] & (dims < HEAD_DIM)[None, :]
    if first is not None:
        inside = inside & (positions + 1 >= first)[:, None]
    if MASKED or HEAD_DIM != HEAD_DIM_PADDED:
        keys = tl.load(k_head + offsets[:, None] + dims[None, :], mask=inside, other=0)
        values = tl.load(v_head + offsets[:, None] + dims[None, :], mask=inside, other=0)
    else:
        keys = tl.load(k_head + offsets[:, None] + dims[None, :])
        values = tl.load(v_head + offsets[:, None] + dims[None, :])
    return softmax_step_of_codes(queries, best, total, acc, keys, values, positions, lows, limits, own, slopes, scale,
                                 SOFTCAP, MASKED, KIND, HOW)


@triton.jit
def softmax_step(queries, best, total, acc, keys, values, positions, lows, limits, own, slopes, scale,
                 SOFTCAP: tl.constexpr, MASKED: tl.constexpr):
    """`best`, `total` and `acc` of the tiles before, and this one.

    With MASKED, row r sees positions below limits[r] and, unless `lows` is None, from lows[r] on. Without `lows` every
    row must see a position of the first step, so that `best` is finite from then on. `slopes` of the rows (None: no
    ALiBi) are per token of distance from `own`, the position of a row's query, and in the unit of exp2. `scale` and
    SOFTCAP come from `scale_and_cap`.
    """
    scores = _scores(queries, keys, positions, lows, limits, own, slopes, scale, SOFTCAP, MASKED)
    if SOFTCAP > 0 or slopes is not None:
        scale = 1.0
    new_best = tl.maximum(best, tl.max(scores, axis=1) * scale)
    base = _base(new_best, lows, MASKED)
    weights = tl.exp2(scores * scale - base[:, None])
    shrink = tl.exp2(best - base)
    total = total * shrink + tl.sum(weights, axis=1)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
    return new_best, total, acc


@triton.jit
def softmax_step_of_codes(queries, best, total, acc, keys, values, positions, lows, limits, own, slopes, scale,
                          SOFTCAP: tl.constexpr, MASKED: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr):
    """As softmax_step, with keys and values as words of two tokens: the even ones are at `positions`."""
    even_keys = kv_codes.numbers(keys, False, KIND, HOW)
    odd_keys = kv_codes.numbers(keys, True, KIND, HOW)
    even = _scores(queries, even_keys, positions, lows, limits, own, slopes, scale, SOFTCAP, MASKED)
    odd = _scores(queries, odd_keys, positions + 1, lows, limits, own, slopes, scale, SOFTCAP, MASKED)
    if SOFTCAP > 0 or slopes is not None:
        scale = 1.0
    new_best = tl.maximum(best, tl.max(tl.maximum(even, odd), axis=1) * scale)
    base = _base(new_best, lows, MASKED)
    even = tl.exp2(even * scale - base[:, None])
    odd = tl.exp2(odd * scale - base[:, None])
    shrink = tl.exp2(best - base)
    total = total * shrink + tl.sum(even + odd, axis=1)
    even_values = kv_codes.numbers(values, False, KIND, HOW)
    odd_values = kv_codes.numbers(values, True, KIND, HOW)
    acc = tl.dot(even.to(tl.float16), even_values, acc * shrink[:, None], input_precision="ieee")
    acc = tl.dot(odd.to(tl.float16), odd_values, acc, input_precision="ieee")
    return new_best, total, acc


@triton.jit
def _scores(queries, keys, positions, lows, limits, own, slopes, scale, SOFTCAP: tl.constexpr, MASKED: tl.constexpr):
    """[rows, positions], still to be multiplied by `scale` where there is neither a cap nor ALiBi."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    if SOFTCAP > 0:
        scores = SOFTCAP - 2 * SOFTCAP / (1 + tl.exp2(scores * scale))  # SOFTCAP * tanh
        scale = 1.0
    if slopes is not None:
        scores = scores * scale + slopes[:, None] * (positions[None, :] - own[:, None]).to(tl.float32)
    if MASKED:
        seen = positions[None, :] < limits[:, None]
        if lows is not None:
            seen = seen & (positions[None, :] >= lows[:, None])
        scores = tl.where(seen, scores, float("-inf"))
    return scores


@triton.jit
def _base(best, lows, MASKED: tl.constexpr):
    """What is taken off the scores: of a row that has seen nothing yet zero, so that all its weights are 0."""
    if MASKED and lows is not None:
        best = tl.where(best > float("-inf"), best, 0.0)
    return best


@triton.jit
def first_state(sinks, heads, counted, ROWS: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr):
    """`best`, `total` and `acc` of rows that have seen no position yet: only, where `counted`, their heads' sinks."""
    if sinks is None:
        best = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
    else:
        best = tl.load(sinks + heads, mask=counted, other=float("-inf")) * IN_EXP2
        total = tl.where(best > float("-inf"), 1.0, 0.0)
    return best, total, tl.zeros([ROWS, HEAD_DIM_PADDED], tl.float32)
