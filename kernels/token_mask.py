"""Masks of allowed tokens, a bit each, in Triton. Contract: kernels/reference/token_mask.py."""

import torch
import triton
import triton.language as tl

from quire.kernels import launch


def mask_tokens(logits: torch.Tensor, places: torch.Tensor, masks: torch.Tensor) -> None:
    num_masked, vocab_size = places.shape[0], logits.shape[1]
    assert logits.dtype == torch.float32
    assert logits.stride(1) == 1
    assert masks.shape[1] * 32 >= vocab_size
    block = launch.MASK_BLOCK
    _mask[(num_masked, triton.cdiv(vocab_size, block))](logits, places, masks, logits.stride(0), masks.stride(0),
                                                       vocab_size, BLOCK=block)


@triton.jit(do_not_specialize=["places", "masks"])  # cut out of a larger tensor
def _mask(logits, places, masks, logits_stride, masks_stride, vocab_size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = ids < vocab_size
    words = tl.load(masks + row * masks_stride + ids // 32, mask=inside, other=0)
    is_out = ((words >> (ids % 32)) & 1) == 0
    place = tl.load(places + row).to(tl.int64)
    tl.store(logits + place * logits_stride + ids, -float("inf"), mask=inside & is_out)
