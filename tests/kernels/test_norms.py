from __future__ import annotations

import pytest
import torch

from quire.kernels.bench import cases

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (5, 128), (2, 700)])
def test_rms_norm_is_the_formula(kernels, dtype, shape):
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)
    out = kernels("norms").rms_norm(x, weight, 1e-5)
    assert out.dtype == dtype
    assert cases.relative_error(out, cases.rms_norm(x, weight, 1e-5)) < TOLERANCE[dtype]


def test_rms_norm_of_heads_inside_a_fused_tensor(kernels):
    fused, weight = torch.randn(5, 7 * 16), torch.randn(16)
    heads = fused[:, 32:80].view(5, 3, 16)
    out = kernels("norms").rms_norm(heads, weight, 1e-6)
    assert out.is_contiguous()
    assert cases.relative_error(out, cases.rms_norm(heads, weight, 1e-6)) < 1e-6


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_add_rms_norm_adds_in_place_and_norms_the_rounded_sum(kernels, dtype):
    x, residual, weight = torch.randn(4, 96).to(dtype), torch.randn(4, 96).to(dtype), torch.randn(96).to(dtype)
    total = residual + x
    kept_x = x.clone()
    out = kernels("norms").add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    assert torch.equal(x, kept_x)
    assert cases.relative_error(out, cases.rms_norm(total, weight, 1e-5)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_is_added_may_be_normed_first(kernels, dtype):
    x, residual = torch.randn(4, 96).to(dtype), torch.randn(4, 96).to(dtype)
    inner_weight, weight = torch.randn(96), torch.randn(96).to(dtype)
    total = residual + cases.rms_norm(x, inner_weight, 1e-5)
    kept_x = x.clone()
    out = kernels("norms").add_rms_norm(x, residual, weight, 1e-5, inner_weight)
    assert torch.equal(x, kept_x)
    assert cases.relative_error(residual, total) < TOLERANCE[dtype]
    assert cases.relative_error(out, cases.rms_norm(residual, weight, 1e-5)) < TOLERANCE[dtype]


def test_the_quotient_is_rounded_before_the_weight(kernels):
    """As in transformers' Llama: bit for bit in float16."""
    x, weight = torch.randn(8, 64).half(), torch.randn(64).half()
    wide = x.float()
    right = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).half()
    different = (kernels("norms").rms_norm(x, weight, 1e-5) != right).float().mean()
    assert different < 0.01  # a last bit of the mean may move a quotient over a rounding edge
