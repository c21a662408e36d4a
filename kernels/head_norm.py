"""RMS norms of the heads of q and k in Triton: one program a token. Contract: kernels/reference/head_norm.py."""

import torch
import triton
import triton.language as tl

from quire.kernels import launch, pdl


def norm_heads(qk: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor, num_q: int, eps: float) -> None:
    num_tokens, num_heads, head_dim = qk.shape
    assert qk.stride(2) == 1
    if num_tokens:
        block = triton.next_power_of_2(head_dim)
        _norm_heads[(num_tokens, triton.cdiv(num_heads, launch.NORMED_HEADS))](
            qk, q_weight, k_weight, qk.stride(0), qk.stride(1), eps, HEADS=num_heads, Q_HEADS=num_q, HEAD_DIM=head_dim,
            HEADS_AT_ONCE=launch.NORMED_HEADS, HEAD_DIM_PADDED=block, **launch.early(qk.device))


@triton.jit
def _norm_heads(qk, q_weight, k_weight, stride, head_stride, eps, HEADS: tl.constexpr, Q_HEADS: tl.constexpr,
                HEAD_DIM: tl.constexpr, HEADS_AT_ONCE: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr,
                EARLY: tl.constexpr):
    pdl.begin(EARLY)
    heads = tl.program_id(1) * HEADS_AT_ONCE + tl.arange(0, HEADS_AT_ONCE)
    dims = tl.arange(0, HEAD_DIM_PADDED)
    inside = (heads < HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
    places = qk + tl.program_id(0).to(tl.int64) * stride + heads[:, None] * head_stride + dims[None, :]
    value = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=1) / HEAD_DIM + eps)
    normed = (value * scale[:, None]).to(qk.dtype.element_ty).to(tl.float32)
    q_factor = tl.load(q_weight + dims, mask=dims < HEAD_DIM, other=0.0).to(tl.float32)
    k_factor = tl.load(k_weight + dims, mask=dims < HEAD_DIM, other=0.0).to(tl.float32)
    factor = tl.where((heads < Q_HEADS)[:, None], q_factor[None, :], k_factor[None, :])
    tl.store(places, (normed * factor).to(qk.dtype.element_ty), mask=inside)
