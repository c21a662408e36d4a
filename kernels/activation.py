"""Activations in Triton, gated and plain: one program a piece of a row. Contract: kernels/reference/activation.py."""

import torch
import triton
import triton.language as tl

from quire.kernels import launch, pdl

KINDS = {"silu": 0, "gelu_tanh": 1, "gelu": 2, "relu": 3, "quick_gelu": 4}


def gated_activation(gate_up: torch.Tensor, kind: str) -> torch.Tensor:
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    if num_tokens:
        grid = (num_tokens, triton.cdiv(size, launch.ACTIVATION_BLOCK))
        _gated_activation[grid](gate_up, out, size, gate_up.stride(0), KIND=KINDS[kind],
                                BLOCK=launch.ACTIVATION_BLOCK, **launch.early(gate_up.device))
    return out


def activation(x: torch.Tensor, kind: str) -> torch.Tensor:
    assert x.is_contiguous()
    out = torch.empty_like(x)
    if x.numel():
        _activation[(triton.cdiv(x.numel(), launch.ACTIVATION_BLOCK),)](
            x, out, x.numel(), KIND=KINDS[kind], BLOCK=launch.ACTIVATION_BLOCK, **launch.early(x.device))
    return out


@triton.jit
def active(x, KIND: tl.constexpr):
    """act(x) of float32 values."""
    if KIND == 0:
        return x / (1.0 + tl.exp(-x))
    elif KIND == 1:
        argument = 0.7978845608028654 * (x + 0.044715 * x * x * x)  # sqrt(2 / pi)
        return x / (1.0 + tl.exp(-2.0 * argument))  # (1 + tanh(a)) / 2 is the sigmoid of 2a: nothing cancels
    elif KIND == 2:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == 3:
        return tl.maximum(x, 0.0)
    else:
        return x / (1.0 + tl.exp(-1.702 * x))


@triton.jit
def gated(gate, up, KIND: tl.constexpr):
    """act(gate) * up for values of the model's dtype, in float32, the activation rounded to that dtype."""
    return active(gate.to(tl.float32), KIND).to(gate.dtype).to(tl.float32) * up.to(tl.float32)


@triton.jit
def _activation(x, out, size, KIND: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    value = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + places, active(value, KIND).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated_activation(gate_up, out, size, stride, KIND: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    gate = tl.load(gate_up + row * stride + columns, mask=inside, other=0.0)
    up = tl.load(gate_up + row * stride + size + columns, mask=inside, other=0.0)
    tl.store(out + row * size + columns, gated(gate, up, KIND).to(out.dtype.element_ty), mask=inside)
