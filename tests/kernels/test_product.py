from __future__ import annotations

import pytest
import torch

from quire.kernels.bench import cases


@pytest.mark.parametrize(("num_rows", "size", "num_outputs"), [(1, 1, 1), (1, 33, 20), (3, 256, 16), (16, 520, 50),
                                                               (2, 1100, 40), (17, 33, 20), (32, 520, 50)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3)])
def test_skinny_product_is_the_product(kernels, num_rows, size, num_outputs, dtype, tolerance):
    x = torch.randn(num_rows, size + 8).to(dtype)[:, :size]  # rows with a gap between them
    weight = torch.randn(num_outputs, size).to(dtype)
    bias = torch.randn(num_outputs).to(dtype) if num_rows > 1 else None
    out = kernels("product").skinny_product(x, weight, bias)
    assert out.shape == (num_rows, num_outputs)
    assert out.dtype == dtype
    assert cases.relative_error(out, cases.product(x, weight, bias)) < tolerance


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
@pytest.mark.parametrize(("num_rows", "size", "num_outputs"), [(1, 33, 1), (16, 520, 50), (29, 520, 50)])
def test_skinny_gated_product_is_the_product_then_the_activation(kernels, kind, num_rows, size, num_outputs):
    x = torch.randn(num_rows, size)
    weight, bias = torch.randn(2 * num_outputs, size) / size ** 0.5, torch.randn(2 * num_outputs)
    for given in (None, bias):
        out = kernels("product").skinny_gated_product(x, weight, given, kind)
        assert cases.relative_error(out, cases.gated_activation(cases.product(x, weight, given), kind)) < 1e-6


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
@pytest.mark.parametrize(("num_rows", "size", "num_outputs"), [(1, 8, 1), (70, 40, 50), (300, 64, 33)])
def test_wide_gated_product_is_the_product_then_the_activation(kernels, kind, num_rows, size, num_outputs):
    x = torch.randn(num_rows, size)
    weight, bias = torch.randn(2 * num_outputs, size) / size ** 0.5, torch.randn(2 * num_outputs)
    for given in (None, bias):
        out = kernels("wide_product").wide_gated_product(x, weight, given, kind)
        assert cases.relative_error(out, cases.gated_activation(cases.product(x, weight, given), kind)) < 1e-6
