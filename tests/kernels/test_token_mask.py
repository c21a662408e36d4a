from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 40, 4097])
def test_a_token_whose_bit_is_not_set_is_out_and_no_other_logit_changes(kernels, vocab_size):
    rows, places = 5, torch.tensor([3, 0], dtype=torch.int32)
    logits = torch.randn(rows, vocab_size)
    allowed = torch.rand(2, -(-vocab_size // 32) * 32) < 0.5
    masks = (allowed.view(2, -1, 32) << torch.arange(32)).sum(-1).to(torch.int32)  # the highest bit is the sign
    right = logits.clone()
    for i, place in enumerate(places.tolist()):
        right[place, ~allowed[i, :vocab_size]] = -torch.inf
    kernels("token_mask").mask_tokens(logits, places, masks)
    assert torch.equal(logits, right)
