"""Rotary embedding and the cache write in Triton: one program a token. Contract: kernels/reference/rotary.py."""

import torch
import triton
import triton.language as tl

from quire.kernels import kv_codes, launch, pdl
from quire.kernels.attention_spec import Rotary


def rotary_and_cache(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rotary: Rotary | None, positions: torch.Tensor,
                     slots: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, k_scale: float = 1.0,
                     v_scale: float = 1.0) -> None:
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k_cache.shape[1:3]
    assert q.stride(2) == k.stride(2) == v.stride(2) == 1
    assert k_cache.is_contiguous()
    assert v_cache.is_contiguous()
    if num_tokens == 0:
        return
    table, half, interleaved = (q, 0, False) if rotary is None else (rotary.table, rotary.half, rotary.interleaved)
    kind = kv_codes.codes_of(k_cache).kind
    factors = (1 / k_scale, 1 / v_scale) if kind else (None, None)
    _rotary_and_cache[(num_tokens,)](
        q, k, v, table, positions, slots, kv_codes.words_of(k_cache), kv_codes.words_of(v_cache), *factors,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), table.stride(0),
        HEADS=num_heads, KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, HALF=half, INTERLEAVED=interleaved,
        BLOCK_SIZE=block_size, HEADS_PADDED=triton.next_power_of_2(num_heads),
        KV_HEADS_PADDED=triton.next_power_of_2(num_kv_heads), HEAD_DIM_PADDED=triton.next_power_of_2(head_dim),
        HALF_PADDED=triton.next_power_of_2(max(half, 1)), KIND=kind, **launch.early(q.device))


def rotate(x: torch.Tensor, rotary: Rotary, positions: torch.Tensor) -> None:
    nowhere = torch.full((x.shape[0],), -1, dtype=torch.int32, device=x.device)  # so that k and v are not looked at
    cache = x.new_empty((1, 1, 1, x.shape[2]))
    rotary_and_cache(x, x[:, :1], x[:, :1], rotary, positions, nowhere, cache, cache)


# The step's tensors are cut out of larger ones: compiled once for any alignment.
@triton.jit(do_not_specialize=["positions", "slots"])
def _rotary_and_cache(q, k, v, table, positions, slots, k_cache, v_cache, k_factor, v_factor,
                      q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride, angles_stride,
                      HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr,
                      INTERLEAVED: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEADS_PADDED: tl.constexpr,
                      KV_HEADS_PADDED: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, HALF_PADDED: tl.constexpr,
                      KIND: tl.constexpr, EARLY: tl.constexpr):
    # The next kernel is not let go early: this one wants no shared memory, and where it still runs, a multiprocessor
    # cannot grant much of it; of attention's programs too few would fit there, to the end.
    pdl.wait_for_previous(EARLY)
    token = tl.program_id(0).to(tl.int64)
    if HALF > 0:
        half = tl.arange(0, HALF_PADDED)
        angles = table + tl.load(positions + token).to(tl.int64) * angles_stride + half
        cos = tl.load(angles, mask=half < HALF, other=0.0)[None, :]
        sin = tl.load(angles + HALF, mask=half < HALF, other=0.0)[None, :]
        # The pair of a cosine: its first dimension, and how far behind it the second is.
        first = half * 2 if INTERLEAVED else half
        apart: tl.constexpr = 1 if INTERLEAVED else HALF

        heads = tl.arange(0, HEADS_PADDED)[:, None]
        inside = (heads < HEADS) & (half < HALF)[None, :]
        places = q + token * q_stride + heads * q_head_stride + first[None, :]
        a = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(places + apart, mask=inside, other=0.0).to(tl.float32)
        tl.store(places, (a * cos - b * sin).to(q.dtype.element_ty), mask=inside)
        tl.store(places + apart, (b * cos + a * sin).to(q.dtype.element_ty), mask=inside)

    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        kv_heads = tl.arange(0, KV_HEADS_PADDED)[:, None]
        # Where each head's part of this slot begins, in either cache.
        begin = ((slot // BLOCK_SIZE) * KV_HEADS + kv_heads) * (BLOCK_SIZE * HEAD_DIM) + slot % BLOCK_SIZE * HEAD_DIM
        source = k + token * k_stride + kv_heads * k_head_stride
        if HALF > 0:
            inside_half = (kv_heads < KV_HEADS) & (half < HALF)[None, :]
            k_a = tl.load(source + first[None, :], mask=inside_half, other=0.0).to(tl.float32)
            k_b = tl.load(source + apart + first[None, :], mask=inside_half, other=0.0).to(tl.float32)
            target = k_cache + begin + first[None, :]
            k_a, k_b = k_a * cos - k_b * sin, k_b * cos + k_a * sin
            if KIND != "":
                k_a = _rounded(k_cache, slot, kv_heads, first[None, :], k_a.to(k.dtype.element_ty), k_factor,
                               inside_half, KIND, KV_HEADS, BLOCK_SIZE, HEAD_DIM)
                k_b = _rounded(k_cache, slot, kv_heads, apart + first[None, :], k_b.to(k.dtype.element_ty), k_factor,
                               inside_half, KIND, KV_HEADS, BLOCK_SIZE, HEAD_DIM)
            else:
                tl.store(target, k_a.to(k_cache.dtype.element_ty), mask=inside_half)
                tl.store(target + apart, k_b.to(k_cache.dtype.element_ty), mask=inside_half)
            tl.store(source + first[None, :], k_a.to(k.dtype.element_ty), mask=inside_half)
            tl.store(source + apart + first[None, :], k_b.to(k.dtype.element_ty), mask=inside_half)

        dims = tl.arange(0, HEAD_DIM_PADDED)[None, :]
        inside_head = (kv_heads < KV_HEADS) & (dims < HEAD_DIM)
        if 2 * HALF < HEAD_DIM:
            rest = inside_head & (dims >= 2 * HALF)
            still = tl.load(source + dims, mask=rest, other=0.0)
            if KIND != "":
                still = _rounded(k_cache, slot, kv_heads, dims, still, k_factor, rest, KIND, KV_HEADS, BLOCK_SIZE,
                                 HEAD_DIM)
                tl.store(source + dims, still.to(k.dtype.element_ty), mask=rest)
            else:
                tl.store(k_cache + begin + dims, still, mask=rest)
        own = v + token * v_stride + kv_heads * v_head_stride + dims
        values = tl.load(own, mask=inside_head, other=0.0)
        if KIND != "":
            values = _rounded(v_cache, slot, kv_heads, dims, values, v_factor, inside_head, KIND, KV_HEADS, BLOCK_SIZE,
                              HEAD_DIM)
            tl.store(own, values.to(v.dtype.element_ty), mask=inside_head)
        else:
            tl.store(v_cache + begin + dims, values, mask=inside_head)


@triton.jit
def _rounded(cache, slot, kv_heads, dims, x, factor, inside, KIND: tl.constexpr, KV_HEADS: tl.constexpr,
             BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Writes x * factor to the slot of a cache of codes; returns the numbers that it then holds, in float16."""
    code = kv_codes.store_codes(cache, (slot // BLOCK_SIZE) * KV_HEADS + kv_heads, slot % BLOCK_SIZE, dims, x, factor,
                                inside, KIND, BLOCK_SIZE, HEAD_DIM)
    return kv_codes.decoded(code, KIND)
