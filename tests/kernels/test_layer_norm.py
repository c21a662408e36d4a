from __future__ import annotations

import pytest
import torch

from quire.kernels.bench import cases

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("with_weight", "with_bias"), [(True, True), (True, False), (False, False)])
def test_layer_norm_is_the_formula(kernels, dtype, with_weight, with_bias):
    for shape in ((3, 33), (2, 700), (2, 3, 16)):
        x = (torch.randn(shape) * 3 + 5).to(dtype)
        weight = torch.randn(shape[-1]).to(dtype) if with_weight else None
        bias = torch.randn(shape[-1]).to(dtype) if with_bias else None
        out = kernels("layer_norm").layer_norm(x, weight, bias, 1e-5)
        assert out.dtype == dtype and out.is_contiguous()
        assert cases.relative_error(out, cases.layer_norm(x, weight, bias, 1e-5)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_add_layer_norm_adds_in_place_and_norms_the_rounded_sum(kernels, dtype):
    x, residual = torch.randn(4, 96).to(dtype), torch.randn(4, 96).to(dtype)
    weight, bias = torch.randn(96).to(dtype), torch.randn(96).to(dtype)
    total = residual + x
    kept_x = x.clone()
    out = kernels("layer_norm").add_layer_norm(x, residual, weight, bias, 1e-5)
    assert torch.equal(residual, total)
    assert torch.equal(x, kept_x)
    assert cases.relative_error(out, cases.layer_norm(total, weight, bias, 1e-5)) < TOLERANCE[dtype]
