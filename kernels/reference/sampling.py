"""From logits to token ids with stateless randomness. Called by quire.engine.sampling through quire.kernels.ops.

A token is a pure function of (logits, parameters, seed, position): a Gumbel-max draw whose noise is a hash of seed,
position and token id. Rows never influence each other.
"""

from __future__ import annotations

import torch

# The multipliers of the hash, shared with kernels/sampling.py, as signed 32-bit integers.
GOLDEN = 0x9E3779B9 - 2**32
MIX_A = 0x7FEB352D
MIX_B = 0x846CA68B - 2**32
POSITION = 0xC2B2AE35 - 2**32

_CHUNK = 1 << 18  # noise elements made at a time: their buffers stay in the cache
_FIRST_WIDTH = 512  # how many of the most likely tokens are sorted before trying more


def sample(logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor,
           min_p: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, *, filtered: bool) -> torch.Tensor:
    """token = argmax(z_i - log(e_i)) over the kept tokens, z = logits / temperature, e_i exponential noise.

    Temperature 0 is argmax(logits), the lowest id winning a tie. Kept, with p = softmax(z): min_p keeps p >= min_p *
    max(p); top_k > 0 keeps values >= the k-th largest, ties included; top_p < 1 keeps a token when the mass of strictly
    more likely ones among those kept so far, over their total mass, is < top_p. `filtered` False: no row has any.

    logits: [samples, vocab] of any float dtype, left unchanged; seeds: [samples] int64; positions: [samples] int; the
    rest [samples]. Returns [samples] int32. All in float32.
    """
    drawn = (temperature > 0).nonzero().squeeze(1)
    if drawn.numel() == 0:
        return logits.argmax(dim=1).to(torch.int32)
    everything = drawn.numel() == logits.shape[0]
    token_ids = torch.empty(logits.shape[0], dtype=torch.int64) if everything else logits.argmax(dim=1)
    z = logits.float() if everything else logits[drawn].float()
    z = z / temperature[drawn].unsqueeze(1)
    if filtered:
        threshold = _thresholds(z, top_k[drawn], top_p[drawn], min_p[drawn])
        z.masked_fill_(z < threshold, -torch.inf)
    keys = _keys(seeds[drawn], positions[drawn])
    rows_at_once = max(1, _CHUNK // z.shape[1])
    for start in range(0, z.shape[0], rows_at_once):
        rows = slice(start, start + rows_at_once)
        noise = exponential(keys[rows], z.shape[1]).log_()
        token_ids[drawn[rows]] = z[rows].sub_(noise).argmax(dim=1)
    return token_ids.to(torch.int32)


def exponential(keys: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """e_i = -log(1 - u_i), u_i = (h_i + 1/2) / 2^31, h_i the high 31 bits of a hash of (key, i). [samples, vocab]

    keys: [samples, 2] int32. u may round to 1: e is then infinite and its token is never drawn.
    """
    index = torch.arange(vocab_size, dtype=torch.int32).mul_(GOLDEN)
    h = index + keys[:, :1]
    shifted = torch.empty_like(h)
    _mix(h, shifted)
    h ^= keys[:, 1:]
    _mix(h, shifted)
    # Made non-negative before it becomes a float: the conversion is then the same everywhere.
    u = torch.bitwise_right_shift(h, 1, out=shifted).bitwise_and_(0x7FFFFFFF).to(torch.float32)
    return u.add_(0.5).mul_(-(2.0**-31)).log1p_().neg_()


def _keys(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Two 32-bit keys for each (seed, position). [samples, 2] int32"""
    low, high = seeds.to(torch.int32), (seeds >> 32).to(torch.int32)  # conversions keep the low 32 bits
    position = positions.to(torch.int32)
    k0 = low + GOLDEN
    shifted = torch.empty_like(k0)
    _mix(k0, shifted)
    k0 ^= high
    _mix(k0, shifted)
    k0 ^= position * POSITION
    _mix(k0, shifted)
    k1 = k0 ^ low
    k1 += GOLDEN
    _mix(k1, shifted)
    k1 ^= high
    _mix(k1, shifted)
    return torch.stack((k0, k1), dim=1)


def _mix(h: torch.Tensor, shifted: torch.Tensor) -> None:
    """An invertible 32-bit finaliser in place: xor-shift, multiply, twice, and a last xor-shift."""
    for shift, multiplier in ((16, MIX_A), (15, MIX_B), (16, None)):
        torch.bitwise_right_shift(h, shift, out=shifted)
        h ^= shifted.bitwise_and_((1 << (32 - shift)) - 1)  # int32 shifts are arithmetic: drop the copied sign
        if multiplier is not None:
            h *= multiplier


def _thresholds(z: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """The smallest kept value of each row. [samples, 1] float32

    Only the most likely tokens are sorted; more of them while some row's top_p mass is not among them.
    """
    vocab_size = z.shape[1]
    largest_k = int(top_k.max())
    width = min(vocab_size, max(_FIRST_WIDTH, largest_k))
    k = top_k.clamp(max=vocab_size).long().unsqueeze(1)
    top_p = top_p.unsqueeze(1)
    while True:
        values = z.topk(width, dim=1).values  # [samples, width], descending
        highest = values[:, :1]
        threshold = highest + min_p.clamp(min=0).log().unsqueeze(1)  # min_p 0: -inf
        kth = values.gather(1, (k - 1).clamp(min=0))
        threshold = torch.where(k > 0, torch.maximum(threshold, kth), threshold)
        if bool((top_p >= 1).all()):
            return threshold
        total = (z - highest).exp_().masked_fill_(z < threshold, 0).sum(dim=1, keepdim=True)
        weights = (values - highest).exp_().masked_fill_(values < threshold, 0)
        mass_through = weights.cumsum(dim=1)
        covered = (mass_through[:, -1:] >= top_p * total) | (values[:, -1:] < threshold) | (top_p >= 1)
        if width == vocab_size or bool(covered.all()):
            break
        width = min(vocab_size, 8 * width)
    # An exclusive sum is that of strictly more likely tokens at the first of equal values, which decides for them all.
    kept = mass_through - weights < top_p * total
    kept[:, 0] = True
    smallest = values.masked_fill(~kept, torch.inf).amin(dim=1, keepdim=True)
    return torch.where(top_p >= 1, threshold, torch.maximum(threshold, smallest))
