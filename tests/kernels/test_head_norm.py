from __future__ import annotations

import pytest
import torch

from quire.kernels.bench import cases


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3)])
@pytest.mark.parametrize(("num_q", "num_k", "head_dim"), [(3, 1, 40), (14, 2, 32), (1, 1, 16)])
def test_heads_are_normed_in_place_and_what_is_beside_them_stays(kernels, num_q, num_k, head_dim, dtype, tolerance):
    fused = torch.randn(5, num_q + 2 * num_k, head_dim).to(dtype)
    before, weights = fused.clone(), [torch.randn(head_dim).to(dtype) for _ in range(2)]
    qk = fused[:, :num_q + num_k]
    right = torch.cat([cases.rms_norm(heads, weight, 1e-6)
                       for heads, weight in zip(qk.split([num_q, num_k], dim=1), weights)], 1)
    kernels("head_norm").norm_heads(qk, *weights, num_q, 1e-6)
    assert cases.relative_error(qk, right) < tolerance
    assert torch.equal(fused[:, num_q + num_k:], before[:, num_q + num_k:])
