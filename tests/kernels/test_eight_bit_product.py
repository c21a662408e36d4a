from __future__ import annotations

import pytest
import torch

from quire.kernels.bench import cases
from quire.kernels.packed_weight import PackedWeight

MOST = {"int8": 127.0, "e4m3": 448.0}


@pytest.mark.parametrize("kind", ["int8", "e4m3"])
@pytest.mark.parametrize(("num_rows", "size", "group"), [(1, 20, 20), (5, 128, 128), (3, 200, 128)])
def test_rows_are_rounded_to_the_nearest_by_their_own_scales(kernels, kind, num_rows, size, group):
    x = torch.randn(num_rows, size + 8)[:, :size]
    x[0] = 0
    codes, scales = kernels("eight_bit_product").round_rows(x, kind, group, 16)
    rounded = PackedWeight(kind, codes, scales.T.contiguous(), size, 16, group)
    out = kernels("packed_product").unpack(rounded, torch.float32)
    assert (out[0] == 0).all()
    for start in range(0, size, group):
        part = x[:, start:start + group].double()
        scale = part.abs().amax(1, keepdim=True) / MOST[kind]
        step = scale if kind == "int8" else part.abs().clamp(min=2 ** -6 * scale) / 8  # about a mantissa's last place
        off = (out[:, start:start + group].double() - part).abs() / step.clamp(min=1e-12)
        if kind == "e4m3" and "reference" not in kernels("norms").__name__:
            # Triton's interpreter loses what is carried into the exponent; check_gpu sees a GPU's rounding.
            assert (off < 0.501).float().mean() > 0.9
        else:
            assert (off < 0.501).all()


@pytest.mark.parametrize("kind", ["int8", "e4m3"])
@pytest.mark.parametrize(("num_rows", "num_outputs", "size", "group"), [(1, 1, 16, 16), (3, 17, 200, 200),
                                                                        (17, 17, 144, 128)])
def test_eight_bit_product_is_the_product(kernels, kind, num_rows, num_outputs, size, group):
    module = kernels("eight_bit_product")
    weight, right = cases.packed_weight(kind, num_outputs, size, group)
    codes, scales = module.round_rows(torch.randn(num_rows, size), kind, group, weight.words)
    rounded = PackedWeight(kind, codes, scales.T.contiguous(), size, weight.words, group)
    x = kernels("packed_product").unpack(rounded, torch.float32)
    bias = torch.randn(num_outputs) if num_rows > 1 else None
    out = module.eight_bit_product(codes, scales, weight, bias, torch.float32)
    assert cases.relative_error(out, cases.product(x, right, bias)) < 1e-6
