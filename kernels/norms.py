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
        _rms_norm[(x.numel() // size,)](x, x, None, weight, out, size, inner, outer_stride, inner_stride, 0, eps,
                                        ADD=False, BLOCK=block, num_warps=launch.warps_for(block),
                                        **launch.early(x.device))
    return out


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float,
                 inner_weight: torch.Tensor | None = None) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_rows, size = x.shape
    block = triton.next_power_of_2(size)
    if num_rows:
        _rms_norm[(num_rows,)](x, residual, inner_weight, weight, out, size, 1, x.stride(0), 0, residual.stride(0),
                               eps, ADD=True, BLOCK=block, num_warps=launch.warps_for(block),
                               **launch.early(x.device))
    return out


@triton.jit
def _rms_norm(x, residual, inner_weight, weight, out, size, inner, outer_stride, inner_stride, residual_stride, eps,
              ADD: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """What is added to the residual is normed first, with `inner_weight`, unless that is None."""
    pdl.begin(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    start = (row // inner) * outer_stride + (row % inner) * inner_stride
    value = tl.load(x + start + columns, mask=inside, other=0.0).to(tl.float32)
    if inner_weight is not None:
        value = _normed(value, inner_weight, size, columns, inside, eps, out.dtype.element_ty).to(tl.float32)
    if ADD:
        value = added(value, residual + row * residual_stride + columns, inside)
    tl.store(out + row * size + columns, _normed(value, weight, size, columns, inside, eps, out.dtype.element_ty),
             mask=inside)


@triton.jit
def _normed(value, weight, size, columns, inside, eps, dtype: tl.constexpr):
    """The norm of a row in float32, rounded to `dtype` before the weight multiplies it, and after."""
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / size + eps)
    rounded = (value * scale).to(dtype).to(tl.float32)
    return (rounded * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)).to(dtype)


@triton.jit
def added(value, places, inside):
    """`places` += value, float32; returns the sums as they were stored, in float32 again."""
    total = value + tl.load(places, mask=inside, other=0.0).to(tl.float32)
    rounded = total.to(places.dtype.element_ty)
    tl.store(places, rounded, mask=inside)
    return rounded.to(tl.float32)
