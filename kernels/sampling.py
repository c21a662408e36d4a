"""Sampling in Triton: no sort, no random state, no word to the host. Contract: kernels/reference/sampling.py.

`_threshold` (only where some row is filtered) finds each row's smallest kept value by bisection: a value is kept when
the count, or the mass, of strictly greater ones is below a target. `_draw` scores pieces of each row with the noise of
(seed, position, token id) and keeps the best of each; `_best` takes the best of those.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from quire.kernels import launch
from quire.kernels.reference import sampling as reference

_GOLDEN = tl.constexpr(reference.GOLDEN)
_MIX_A = tl.constexpr(reference.MIX_A)
_MIX_B = tl.constexpr(reference.MIX_B)
_POSITION = tl.constexpr(reference.POSITION)

# Tensors cut out of larger ones: compiled once for any alignment.
_VARYING = ["temperature", "top_k", "top_p", "min_p", "threshold", "seeds", "positions"]


def sample(logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor,
           min_p: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, *, filtered: bool) -> torch.Tensor:
    num_samples, vocab_size = logits.shape
    assert logits.stride(1) == 1
    token_ids = torch.empty(num_samples, dtype=torch.int32, device=logits.device)
    if num_samples == 0:
        return token_ids
    threshold = torch.empty(num_samples if filtered else 0, dtype=torch.float32, device=logits.device)
    if filtered:
        _threshold[(num_samples,)](logits, temperature, top_k, top_p, min_p, threshold, logits.stride(0), vocab_size,
                                   BLOCK=launch.THRESHOLD_BLOCK, num_warps=launch.THRESHOLD_WARPS)
    num_pieces = triton.cdiv(vocab_size, launch.SAMPLE_BLOCK)
    scores = torch.empty((num_samples, num_pieces), dtype=torch.float32, device=logits.device)
    ids = torch.empty((num_samples, num_pieces), dtype=torch.int32, device=logits.device)
    _draw[(num_samples, num_pieces)](
        logits, temperature, threshold, seeds, positions, scores, ids, logits.stride(0), vocab_size,
        FILTERED=filtered, BLOCK=launch.SAMPLE_BLOCK, FAST_LOG=launch.has_fast_logarithm(logits.device),
        num_warps=launch.SAMPLE_WARPS)
    _best[(num_samples,)](scores, ids, token_ids, num_pieces, PIECES_PADDED=triton.next_power_of_2(num_pieces),
                          num_warps=1)
    return token_ids


@triton.jit
def _mix(h):
    """An invertible 32-bit finaliser; the masks undo the sign that an arithmetic shift copies."""
    h = (h ^ ((h >> 16) & 0xFFFF)) * _MIX_A
    h = (h ^ ((h >> 15) & 0x1FFFF)) * _MIX_B
    return h ^ ((h >> 16) & 0xFFFF)


@triton.jit
def _log(x, FAST: tl.constexpr):
    return libdevice.fast_logf(x) if FAST else tl.log(x)


@triton.jit
def _noise(seed, position, ids, FAST_LOG: tl.constexpr):
    """log(e) of the reference's `exponential` for these token ids."""
    low, high = seed.to(tl.int32), (seed >> 32).to(tl.int32)
    k0 = _mix(_mix(_mix(low + _GOLDEN) ^ high) ^ (position.to(tl.int32) * _POSITION))
    k1 = _mix(_mix((k0 ^ low) + _GOLDEN) ^ high)
    h = _mix(_mix(ids * _GOLDEN + k0) ^ k1)
    u = (((h >> 1) & 0x7FFFFFFF).to(tl.float32) + 0.5) * 4.656612873077393e-10  # 2^-31
    # Near 0, 1 - u would lose u's digits, and the fast logarithm those of its result: there, the series.
    series = u * (1.0 + u * (0.5 + u * (0.33333333 + u * (0.25 + u * 0.2))))
    e = tl.where(u < 0.0625, series, -_log(1.0 - u, FAST_LOG))
    return _log(e, FAST_LOG)


@triton.jit(do_not_specialize=_VARYING)
def _draw(logits, temperature, threshold, seeds, positions, scores, ids, stride, vocab_size, FILTERED: tl.constexpr,
          BLOCK: tl.constexpr, FAST_LOG: tl.constexpr):
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = piece * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(logits + row * stride + columns, mask=columns < vocab_size, other=float("-inf")).to(tl.float32)
    heat = tl.load(temperature + row)
    if heat > 0:
        value = value / heat
        if FILTERED:
            value = tl.where(value >= tl.load(threshold + row), value, float("-inf"))
        noise = _noise(tl.load(seeds + row), tl.load(positions + row), columns, FAST_LOG)
        value = value - noise
    best = tl.max(value, axis=0)
    entry = row * tl.num_programs(1) + piece
    tl.store(scores + entry, best)
    tl.store(ids + entry, tl.min(tl.where((value == best) & (columns < vocab_size), columns, 2147483647), axis=0))


@triton.jit
def _best(scores, ids, token_ids, num_pieces, PIECES_PADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    pieces = tl.arange(0, PIECES_PADDED)
    inside = pieces < num_pieces
    score = tl.load(scores + row * num_pieces + pieces, mask=inside, other=float("-inf"))
    token = tl.load(ids + row * num_pieces + pieces, mask=inside, other=2147483647)
    winner = tl.min(tl.where(score == tl.max(score, axis=0), token, 2147483647), axis=0)
    # Only a row of NaN has no best: token 0 keeps the table's ids valid.
    tl.store(token_ids + row, tl.where(winner == 2147483647, 0, winner))


@triton.jit(do_not_specialize=_VARYING)
def _threshold(logits, temperature, top_k, top_p, min_p, threshold, stride, vocab_size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature + row)
    k, p, least = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
    by_count = (k > 0) & (k < vocab_size)
    by_mass = p < 1.0
    result = float("-inf")
    if (heat > 0) & (by_count | by_mass | (least > 0)):
        begin = logits + row * stride
        lows = tl.full([BLOCK], float("inf"), tl.float32)
        highs = tl.full([BLOCK], float("-inf"), tl.float32)
        for place in range(0, vocab_size, BLOCK):
            z = _scaled(begin, place, heat, vocab_size, BLOCK)
            highs = tl.maximum(highs, z)
            lows = tl.minimum(lows, tl.where(z == float("-inf"), float("inf"), z))
        lowest, highest = tl.min(lows, axis=0), tl.max(highs, axis=0)
        result = tl.where(least > 0, highest + tl.log(least), float("-inf"))
        if by_count:
            kth = _smallest_kept(begin, heat, vocab_size, lowest, highest, lowest, k.to(tl.float32), False, BLOCK)
            result = tl.maximum(result, kth)
        if by_mass:
            masses = tl.zeros([BLOCK], tl.float32)
            for place in range(0, vocab_size, BLOCK):
                z = _scaled(begin, place, heat, vocab_size, BLOCK)
                masses += tl.where(z >= result, tl.exp(z - highest), 0.0)
            target = p * tl.sum(masses, axis=0)
            from_here = tl.maximum(result, lowest)
            kept = _smallest_kept(begin, heat, vocab_size, lowest, highest, from_here, target, True, BLOCK)
            result = tl.maximum(result, kept)
    tl.store(threshold + row, result)


@triton.jit
def _scaled(begin, place, heat, vocab_size, BLOCK: tl.constexpr):
    """The largest number in place of infinity, of which no search would find the middle."""
    columns = place + tl.arange(0, BLOCK)
    z = tl.load(begin + columns, mask=columns < vocab_size, other=float("-inf")).to(tl.float32) / heat
    return tl.minimum(z, 3.4028234e38)


@triton.jit
def _smallest_kept(begin, heat, vocab_size, lowest, highest, from_here, target, BY_MASS: tl.constexpr,
                   BLOCK: tl.constexpr):
    """The smallest value v >= from_here of the row for which the measure of values > v is below target.

    The measure is a count, or a mass of exp(v - highest). All values <= low are rejected or too small, `high` is one of
    the row's values and kept. Each pass measures at the middle and pulls the bounds to values of the row, so that the
    search ends as soon as one candidate is left.
    """
    # Strictly below from_here, and not so far from it that the first middle is wasted.
    low = from_here - tl.maximum(tl.abs(from_here), 1.0) * 1e-6
    high = highest
    running = 1
    while running != 0:
        middle = 0.5 * low + 0.5 * high
        middle = tl.where(middle >= high, low, middle)
        measures = tl.zeros([BLOCK], tl.float32)
        belows = tl.full([BLOCK], float("-inf"), tl.float32)
        aboves = tl.full([BLOCK], float("inf"), tl.float32)
        for place in range(0, vocab_size, BLOCK):
            z = _scaled(begin, place, heat, vocab_size, BLOCK)
            greater = z > middle
            if BY_MASS:
                measures += tl.where(greater, tl.exp(z - highest), 0.0)
            else:
                measures += tl.where(greater, 1.0, 0.0)
            belows = tl.maximum(belows, tl.where(greater, float("-inf"), z))
            aboves = tl.minimum(aboves, tl.where(greater, z, float("inf")))
        below, above = tl.max(belows, axis=0), tl.min(aboves, axis=0)
        kept = tl.sum(measures, axis=0) < target
        only_high = above >= high
        # Kept at the middle: so is the greatest value up to it, unless that is too small to count at all.
        running = tl.where(kept, tl.where(below > low, 1, 0), tl.where(only_high, 0, 1))
        high = tl.where(kept, tl.where(below > low, below, above), high)
        low = tl.where(kept, low, middle)
    return high
