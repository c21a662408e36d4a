from __future__ import annotations

import pytest
import torch

from quire.kernels.bench import cases

BLOCK_SIZE = 16


def make(num_tokens: int, heads: int, kv_heads: int, head_dim: int, rotary_dim: int, dtype: torch.dtype):
    fused = torch.randn(num_tokens, heads + 2 * kv_heads, head_dim).to(dtype)
    q, k, v = fused.split([heads, kv_heads, kv_heads], dim=1)
    angles = torch.rand(50, rotary_dim // 2) * 6
    return q, k, v, angles


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "rotary_dim", "style"), [
    (3, 1, 64, 64, "half"), (4, 2, 80, 32, "half"), (2, 2, 96, 96, "half"), (2, 1, 80, 20, "half"),
    (3, 3, 64, 64, "interleaved"), (2, 1, 96, 40, "interleaved"), (2, 1, 40, 0, "half")])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3)])
def test_rotates_and_writes_to_slots(kernels, heads, kv_heads, head_dim, rotary_dim, style, dtype, tolerance):
    q, k, v, angles = make(5, heads, kv_heads, head_dim, rotary_dim, dtype)
    positions = torch.tensor([0, 49, 7, 7, 20], dtype=torch.int32)
    slots = torch.tensor([0, 15, 16, -1, 63], dtype=torch.int32)
    k_cache, v_cache = (torch.full((4, kv_heads, BLOCK_SIZE, head_dim), torch.nan, dtype=dtype) for _ in range(2))
    right_q, right_k = (cases.rotated(x, angles[positions], style) for x in (q, k))
    right_v = v.clone()
    rotary = cases.rotary(angles, style) if rotary_dim else None
    kernels("rotary").rotary_and_cache(q, k, v, rotary, positions, slots, k_cache, v_cache)
    assert cases.relative_error(q, right_q) < tolerance
    written = [0, 1, 2, 4]
    places = slots[written].long()
    for cache, right in ((k_cache, right_k), (v_cache, right_v)):
        assert cases.relative_error(cache[places // 16, :, places % 16], right[written]) < tolerance
        cache[places // 16, :, places % 16] = torch.nan
        assert cache.isnan().all(), "something was written outside the slots"


@pytest.mark.parametrize(("heads", "head_dim", "rotary_dim", "style"), [
    (3, 64, 64, "half"), (8, 80, 80, "half"), (2, 72, 72, "half"), (2, 96, 40, "interleaved")])
def test_heads_are_turned_where_they_lie_and_nothing_beside_them(kernels, heads, head_dim, rotary_dim, style):
    fused = torch.randn(5, heads + 2, head_dim)
    before, angles = fused.clone(), torch.rand(50, rotary_dim // 2) * 6
    positions = torch.tensor([0, 49, 7, 7, 20], dtype=torch.int32)
    kernels("rotary").rotate(fused[:, :heads], cases.rotary(angles, style), positions)
    assert cases.relative_error(fused[:, :heads], cases.rotated(before[:, :heads], angles[positions], style)) < 1e-6
    assert torch.equal(fused[:, heads:], before[:, heads:])
