from __future__ import annotations

import pytest
import torch

from quire.kernels.bench import cases


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3)])
def test_gated_activation_is_the_formula(kernels, kind, dtype, tolerance):
    gate_up = (torch.randn(3, 2 * 1030) * 4).to(dtype)
    gate_up[0, :3] = torch.tensor([-100.0, 100.0, 0.0])
    out = kernels("activation").gated_activation(gate_up, kind)
    assert out.is_contiguous()
    assert cases.relative_error(out, cases.gated_activation(gate_up, kind)) < tolerance


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu", "relu", "quick_gelu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3)])
def test_activation_is_the_formula(kernels, kind, dtype, tolerance):
    x = (torch.randn(3, 700) * 4).to(dtype)
    x[0, :3] = torch.tensor([-100.0, 100.0, 0.0])
    assert cases.relative_error(kernels("activation").activation(x, kind), cases.activation(x, kind)) < tolerance
