"""The online softmax over one tile of K and V, on which kernels/decode.py and kernels/prefill.py are built.

Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Dao, "FlashAttention-2" (2023), algorithm 1.
"""

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634  # scores are scaled by it, since exp2 is the faster one


@triton.jit
def paged_step(queries, best, total, acc, start, limits, end, table, k_head, v_head, block_stride, scale,
               HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, COLUMNS: tl.constexpr,
               MASKED: tl.constexpr):
    """One step over positions start .. start + COLUMNS - 1 of the cache, row r seeing those below limits[r].

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
    return softmax_step(queries, best, total, acc, keys, values, positions, limits, scale, MASKED)


@triton.jit
def softmax_step(queries, best, total, acc, keys, values, positions, limits, scale, MASKED: tl.constexpr):
    """`best`, `total` and `acc` of the tiles before, and this one."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    if MASKED:
        scores = tl.where(positions[None, :] < limits[:, None], scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, axis=1) * scale)
    weights = tl.exp2(scores * scale - new_best[:, None])
    shrink = tl.exp2(best - new_best)
    total = total * shrink + tl.sum(weights, axis=1)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
    return new_best, total, acc
