from __future__ import annotations

import torch


def test_copies_whole_blocks_and_nothing_else(kernels):
    k_cache, v_cache = torch.randn(7, 2, 16, 32), torch.randn(7, 2, 16, 32)
    before_k, before_v = k_cache.clone(), v_cache.clone()
    sources, targets = torch.tensor([[5, 0, 5], [1, 6, 3]], dtype=torch.int32)
    kernels("blocks").copy_blocks(k_cache, v_cache, sources, targets)
    for after, before in ((k_cache, before_k), (v_cache, before_v)):
        assert torch.equal(after[[1, 6, 3]], before[[5, 0, 5]])
        assert torch.equal(after[[0, 2, 4, 5]], before[[0, 2, 4, 5]])
