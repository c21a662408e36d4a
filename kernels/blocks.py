"""Copy-on-write of KV blocks in Triton. Contract: kernels/reference/blocks.py."""

import torch
import triton
import triton.language as tl

from quire.kernels import kv_codes, launch


def copy_blocks(k_cache: torch.Tensor, v_cache: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> None:
    assert k_cache.is_contiguous()
    assert v_cache.is_contiguous()
    k_cache, v_cache = kv_codes.words_of(k_cache), kv_codes.words_of(v_cache)
    block_numel = k_cache.stride(0)
    if sources.numel():
        _copy_blocks[(sources.numel(), triton.cdiv(block_numel, launch.COPY_BLOCK))](
            k_cache, v_cache, sources, targets, block_numel, BLOCK=launch.COPY_BLOCK)


@triton.jit(do_not_specialize=["sources", "targets"])
def _copy_blocks(k_cache, v_cache, sources, targets, block_numel, BLOCK: tl.constexpr):
    source = tl.load(sources + tl.program_id(0)).to(tl.int64) * block_numel
    target = tl.load(targets + tl.program_id(0)).to(tl.int64) * block_numel
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = places < block_numel
    tl.store(k_cache + target + places, tl.load(k_cache + source + places, mask=inside), mask=inside)
    tl.store(v_cache + target + places, tl.load(v_cache + source + places, mask=inside), mask=inside)
