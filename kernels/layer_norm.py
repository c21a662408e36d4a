"""Layer norms in Triton: one program a row. Contract: kernels/reference/layer_norm.py."""

import torch
import triton
import triton.language as tl

from quire.kernels import launch, pdl
from quire.kernels.norms import added


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return _launch(rows, rows, weight, bias, eps, add=False).view(x.shape)


def add_layer_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None,
                   eps: float) -> torch.Tensor:
    return _launch(x, residual, weight, bias, eps, add=True)


def _launch(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None,
            eps: float, *, add: bool) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_rows, size = x.shape
    block = triton.next_power_of_2(size)
    if num_rows:
        _layer_norm[(num_rows,)](
            x, residual, x if weight is None else weight, x if bias is None else bias, out, size, x.stride(0),
            residual.stride(0), eps, ADD=add, WEIGHT=weight is not None, BIAS=bias is not None, BLOCK=block,
            num_warps=launch.warps_for(block), **launch.early(x.device))
    return out


@triton.jit
def _layer_norm(x, residual, weight, bias, out, size, stride, residual_stride, eps, ADD: tl.constexpr,
                WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    value = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value = added(value, residual + row * residual_stride + columns, inside)
    centred = tl.where(inside, value - tl.sum(value, axis=0) / size, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / size + eps)
    if WEIGHT:
        normed *= tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        normed += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + columns, normed.to(out.dtype.element_ty), mask=inside)
