"""The gated activation in Triton: one program a piece of a row. Contract: kernels/reference/activation.py."""

import torch
import triton
import triton.language as tl

from quire.kernels import launch, pdl

KINDS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}


def gated_activation(gate_up: torch.Tensor, kind: str) -> torch.Tensor:
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    if num_tokens:
        grid = (num_tokens, triton.cdiv(size, launch.ACTIVATION_BLOCK))
        _gated_activation[grid](gate_up, out, size, gate_up.stride(0), KIND=KINDS[kind],
                                BLOCK=launch.ACTIVATION_BLOCK, **launch.early(gate_up.device))
    return out


@triton.jit
def gated(gate, up, KIND: tl.constexpr):
    """act(gate) * up for values of the model's dtype, in float32, the activation rounded to that dtype."""
    dtype = gate.dtype
    gate = gate.to(tl.float32)
    if KIND == 0:
        active = gate / (1.0 + tl.exp(-gate))
    elif KIND == 1:
        argument = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)  # sqrt(2 / pi)
        active = gate / (1.0 + tl.exp(-2.0 * argument))  # (1 + tanh(a)) / 2 is the sigmoid of 2a: nothing cancels
    else:
        active = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    return active.to(dtype).to(tl.float32) * up.to(tl.float32)


@triton.jit
def _gated_activation(gate_up, out, size, stride, KIND: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    gate = tl.load(gate_up + row * stride + columns, mask=inside, other=0.0)
    up = tl.load(gate_up + row * stride + size + columns, mask=inside, other=0.0)
    tl.store(out + row * size + columns, gated(gate, up, KIND).to(out.dtype.element_ty), mask=inside)
