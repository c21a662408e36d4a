from __future__ import annotations

import pytest
import torch

from quire.kernels.bench import cases
from quire.kernels.packed_weight import joined

KINDS = ["int4", "int8", "e4m3", "e2m1", "nf4"]
# outputs, inputs, elements of a group: whole and ragged runs, steps and groups
SHAPES = [(1, 32, 32), (20, 96, 32), (33, 300, 300), (16, 128, 128), (24, 112, 16), (9, 144, 48)]
# All with one kind of each number of bits; the others' numbers alone differ.
CASES = [(kind, shape) for kind in KINDS for shape in (SHAPES if kind in ("int4", "e4m3") else SHAPES[1:5:3])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_outputs", "size", "group"), [(20, 80, 80), (24, 112, 16), (18, 272, 128)])
def test_unpacked_weights_are_their_codes_scaled(kernels, kind, num_outputs, size, group):
    weight, right = cases.packed_weight(kind, num_outputs, size, group, with_zeros=num_outputs != 20,
                                        with_outer=num_outputs == 24)
    out = kernels("packed_product").unpack(weight, torch.float32)
    assert out.shape == (num_outputs, size)
    assert cases.relative_error(out, right) < 1e-6


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_packed_product_is_the_product(kernels, kind, shape):
    num_outputs, size, group = shape
    dtype, tolerance = (torch.float16, 1e-3) if num_outputs == 16 else (torch.float32, 1e-6)
    num_rows = {20: 1, 33: 17}.get(num_outputs, 3)
    weight, right = cases.packed_weight(kind, num_outputs, size, group, with_zeros=num_outputs in (33, 16, 24),
                                        whole_zeros=kind.startswith("int") and num_outputs != 33,
                                        with_outer=num_outputs in (33, 24))
    x = torch.randn(num_rows, size + 8).to(dtype)[:, :size]  # rows with a gap between them
    bias = torch.randn(num_outputs).to(dtype) if num_rows > 1 else None
    out = kernels("packed_product").packed_product(x, weight, bias)
    assert out.shape == (num_rows, num_outputs)
    assert out.dtype == dtype
    assert cases.relative_error(out, cases.product(x, right, bias)) < tolerance


def test_matrices_one_behind_the_other_are_one_matrix(kernels):
    made = [cases.packed_weight("int4", n, 64, 32, with_zeros=zeros) for n, zeros in ((3, False), (5, True))]
    made.append(cases.packed_weight("int4", 4, 64, 32, with_zeros=True, whole_zeros=True))
    weight = joined([weight for weight, _ in made])
    out = kernels("packed_product").unpack(weight, torch.float32)
    assert cases.relative_error(out, torch.cat([right for _, right in made])) < 1e-6
