"""The online softmax over one tile of K and V, on which kernels/decode.py and kernels/prefill.py are built.

Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Dao, "FlashAttention-2" (2023), algorithm 1.
"""

import triton
import triton.language as tl

from quire.kernels.attention_spec import AttentionSpec

LOG2_E = 1.4426950408889634  # scores are scaled by it, since exp2 is the faster one
IN_EXP2 = tl.constexpr(LOG2_E)


def scale_and_cap(spec: AttentionSpec) -> tuple[float, float]:
    """`scale` and SOFTCAP of softmax_step."""
    if spec.softcap:
        return 2 * LOG2_E * spec.scale / spec.softcap, LOG2_E * spec.softcap
    return LOG2_E * spec.scale, 0.0


@triton.jit
def paged_step(queries, best, total, acc, start, lows, limits, end, own, slopes, table, k_head, v_head, block_stride,
               scale, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
               COLUMNS: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr, first=None):
    """One step over positions start .. start + COLUMNS - 1 of the cache, row r seeing those below limits[r].

    `end` bounds all limits, and `first` all lows, where the step may begin before: what lies there may be anything.
    Without MASKED every row sees every position. The rest is as in softmax_step.
    """
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
def softmax_step(queries, best, total, acc, keys, values, positions, lows, limits, own, slopes, scale,
                 SOFTCAP: tl.constexpr, MASKED: tl.constexpr):
    """`best`, `total` and `acc` of the tiles before, and this one.

    With MASKED, row r sees positions below limits[r] and, unless `lows` is None, from lows[r] on. Without `lows` every
    row must see a position of the first step, so that `best` is finite from then on. `slopes` of the rows (None: no
    ALiBi) are per token of distance from `own`, the position of a row's query, and in the unit of exp2. `scale` and
    SOFTCAP come from `scale_and_cap`.
    """
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    if SOFTCAP > 0:
        scores = SOFTCAP - 2 * SOFTCAP / (1 + tl.exp2(scores * scale))  # SOFTCAP * tanh
        scale = 1.0
    if slopes is not None:
        scores = scores * scale + slopes[:, None] * (positions[None, :] - own[:, None]).to(tl.float32)
        scale = 1.0
    if MASKED:
        seen = positions[None, :] < limits[:, None]
        if lows is not None:
            seen = seen & (positions[None, :] >= lows[:, None])
        scores = tl.where(seen, scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, axis=1) * scale)
    base = new_best
    if MASKED and lows is not None:
        base = tl.where(new_best > float("-inf"), new_best, 0.0)  # of a row that has seen nothing yet, so that all is 0
    weights = tl.exp2(scores * scale - base[:, None])
    shrink = tl.exp2(best - base)
    total = total * shrink + tl.sum(weights, axis=1)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
    return new_best, total, acc


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
