"""Parts of a sequence's attention put together, for kernels that take a context in parts.

Each part's result is divided by its own sum of weights; its largest score and that sum are beside it.
Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), section 3.1.
"""

import triton
import triton.language as tl


@triton.jit
def merge_group(partial, stats, out, first_head, used_own, used, own_splits, num_splits, stats_numel,
                GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, VALUES: tl.constexpr):
    """A group's results of all splits, weighted by their shares of the whole sum of weights; zeros where none is used.

    The first used_own of the used splits are the first of all; the others follow the own_splits. A head's splits lie
    num_splits apart from the next head's; the sums of weights stats_numel behind the largest scores. VALUES are held at
    a time, if that is a split's at least.
    """
    HEADS: tl.constexpr = triton.next_power_of_2(GROUP)
    AT_ONCE: tl.constexpr = VALUES // (HEADS * HEAD_DIM_PADDED) if HEADS * HEAD_DIM_PADDED < VALUES else 1
    heads = tl.arange(0, HEADS)
    dims = tl.arange(0, HEAD_DIM_PADDED)
    best = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    acc = tl.zeros([HEADS, HEAD_DIM_PADDED], tl.float32)
    for start in range(0, used, AT_ONCE):
        place = start + tl.arange(0, AT_ONCE)
        split = tl.where(place < used_own, place, place - used_own + own_splits)
        entries = (first_head + heads)[None, :] * num_splits + split[:, None]  # [splits, heads]
        inside = (place < used)[:, None] & (heads < GROUP)[None, :]
        # Past the L1: other programs of this very kernel may have written them.
        bests = tl.load(stats + entries, mask=inside, other=float("-inf"), cache_modifier=".cg")
        totals = tl.load(stats + stats_numel + entries, mask=inside, other=0.0, cache_modifier=".cg")
        results = tl.load(partial + entries[:, :, None] * HEAD_DIM + dims[None, None, :],
                          mask=inside[:, :, None] & (dims < HEAD_DIM)[None, None, :], other=0.0, cache_modifier=".cg")
        new_best = tl.maximum(best, tl.max(bests, axis=0))
        shares = tl.where(inside, tl.exp2(bests - new_best[None, :]) * totals, 0.0)
        shrink = tl.where(best > float("-inf"), tl.exp2(best - new_best), 0.0)
        total = total * shrink + tl.sum(shares, axis=0)
        acc = acc * shrink[:, None] + tl.sum(results * shares[:, :, None], axis=0)
        best = new_best
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    places = out + (first_head + heads)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(places, result.to(out.dtype.element_ty), mask=(heads < GROUP)[:, None] & (dims < HEAD_DIM)[None, :])
