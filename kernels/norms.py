"""RMS norms in Triton: one program a row. Contract: kernels/reference/norms.py."""

import torch
import triton
import triton.language as tl

from quire.kernels import launch, pdl


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x: [..., size]; with three dimensions it may be a strided view [tokens, heads, size]."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.dim() > 3:
        x = x.reshape(-1, x.shape[-1])
    inner, outer_stride, inner_stride = (x.shape[1], *x.stride()[:2]) if x.dim() == 3 else (1, x.stride(0), 0)
    size = x.shape[-1]
    block = triton.next_power_of_2(size)
    if x.numel():
        _rms_norm[(x.numel() // size,)](x, x, weight, out, size, inner, outer_stride, inner_stride, 0, eps, ADD=False,
                                        BLOCK=block, num_warps=launch.warps_for(block), **launch.early(x.device))
    return out


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_rows, size = x.shape
    block = triton.next_power_of_2(size)
    if num_rows:
        _rms_norm[(num_rows,)](x, residual, weight, out, size, 1, x.stride(0), 0, residual.stride(0), eps, ADD=True,
                               BLOCK=block, num_warps=launch.warps_for(block), **launch.early(x.device))
    return out


@triton.jit
def _rms_norm(x, residual, weight, out, size, inner, outer_stride, inner_stride, residual_stride, eps,
              ADD: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    start = (row // inner) * outer_stride + (row % inner) * inner_stride
    value = tl.load(x + start + columns, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value = added(value, residual + row * residual_stride + columns, inside)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / size + eps)
    normed = (value * scale).to(out.dtype.element_ty).to(tl.float32)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + columns, (normed * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit
def added(value, places, inside):
    """`places` += value, float32; returns the sums as they were stored, in float32 again."""
    total = value + tl.load(places, mask=inside, other=0.0).to(tl.float32)
    rounded = total.to(places.dtype.element_ty)
    tl.store(places, rounded, mask=inside)
    return rounded.to(tl.float32)
