"""Rotary embedding of q and k, fused with the write of k and v into the paged cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.kernels.attention_spec import Rotary
from quire.kernels.reference import kv_codes


def rotary_and_cache(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rotary: Rotary | None, positions: torch.Tensor,
                     slots: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, k_scale: float = 1.0,
                     v_scale: float = 1.0) -> None:
    """(a, b) -> (a cos - b sin, b cos + a sin) for each pair of the first rotary_dim dimensions of a head.

    a and b are dimensions d and d + rotary_dim / 2, or 2 d and 2 d + 1 where `rotary` is interleaved; without `rotary`
    q and k stay as they are. q: [tokens, heads, head_dim], k, v: [tokens, kv_heads, head_dim]; q is rotated in place,
    and so is k where it has a slot. All three may be strided views of one tensor with a contiguous last dimension.
    rotary.table: [positions, rotary_dim] float32, cos first, sin second. k_cache, v_cache: [blocks, kv_heads,
    block_size, head_dim]; slot = block * block_size + offset, and a negative slot is written nowhere. The rotation is
    computed in float32 and rounded once.

    Caches in 8 bits hold k / k_scale and v / v_scale, by kv_codes.encoded, of k and v in their own type. Where a token
    has a slot, k and v then become the numbers that the caches hold, still divided by their scales: whoever attends to
    them there sees what others see in the cache.
    """
    turned, placed = turns_of(rotary, positions), places_of(slots, k_cache)
    turn_and_write(q, k, v, rotary, turned, placed, k_cache, v_cache, k_scale, v_scale)


Turns = tuple[torch.Tensor, torch.Tensor] | None  # cos and sin, each [tokens, 1, rotary_dim / 2]


@dataclass(frozen=True, slots=True)
class Places:
    """Where in a cache the tokens with a slot lie."""

    real: torch.Tensor | None  # [tokens] bool, those with one; None: all
    blocks: torch.Tensor  # [those]
    offsets: torch.Tensor


def turns_of(rotary: Rotary | None, positions: torch.Tensor) -> Turns:
    if rotary is None:
        return None
    cos, sin = rotary.table.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    return cos, sin


def places_of(slots: torch.Tensor, cache: torch.Tensor) -> Places:
    real = None
    if int(slots.min()) < 0:
        real = slots >= 0
        slots = slots[real]
    return Places(real, slots // cache.shape[2], slots % cache.shape[2])


def turn_and_write(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rotary: Rotary | None, turned: Turns,
                   placed: Places, k_cache: torch.Tensor, v_cache: torch.Tensor, k_scale: float, v_scale: float
                   ) -> None:
    """rotary_and_cache, with what is alike in many layers of a step."""
    if rotary is not None and turned is not None:
        for x in (q, k):
            _rotate(*_pairs(x, rotary), *turned)
    mine, blocks, offsets = slice(None) if placed.real is None else placed.real, placed.blocks, placed.offsets
    if kv_codes.is_coded(k_cache):
        for x, cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
            codes = kv_codes.encoded(x[mine], scale, cache.dtype)
            kv_codes.put(cache, blocks, offsets, codes)
            x[mine] = codes.to(x.dtype)
        return
    k_cache[blocks, :, offsets] = k[mine]
    v_cache[blocks, :, offsets] = v[mine]


def rotate(x: torch.Tensor, rotary: Rotary, positions: torch.Tensor) -> None:
    """As rotary_and_cache turns q: x [tokens, heads, head_dim] in place, by rows `positions` [tokens] int32 of the
    table. x may be a strided view with a contiguous last dimension."""
    cos_and_sin = turns_of(rotary, positions)
    assert cos_and_sin is not None
    _rotate(*_pairs(x, rotary), *cos_and_sin)


def _pairs(x: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
    half = rotary.half
    if rotary.interleaved:
        return x[..., 0: 2 * half: 2], x[..., 1: 2 * half: 2]
    return x[..., :half], x[..., half: 2 * half]


def _rotate(a: torch.Tensor, b: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    rotated_a = (a * cos).sub_(b * sin)  # float32, as cos is
    b.copy_((b * cos).add_(a * sin))
    a.copy_(rotated_a)
