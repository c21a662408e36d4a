from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize(("num_top", "vocab"), [(0, 50), (1, 50), (5, 50), (0, 1000), (1, 1000), (5, 1000), (20, 1344)])
def test_logprobs_are_of_the_raw_distribution(kernels, num_top, vocab):
    logits = torch.randn(4, vocab)
    logits[0, 7] = logits[0, 9] = 10.0
    token_ids = torch.tensor([9, 0, 3, 49], dtype=torch.int32)
    right = logits.double().log_softmax(-1)
    logprob, rank, top_ids, top = kernels("logprobs").logprobs(logits, token_ids, num_top)
    torch.testing.assert_close(logprob.double(), right[range(4), token_ids.long()], atol=1e-6, rtol=1e-6)
    assert rank[0] == 1  # a tie for the best
    for i in range(1, 4):
        assert rank[i] == (right[i] > right[i, token_ids[i]]).sum() + 1
    assert top_ids.shape == top.shape == (4, num_top)
    torch.testing.assert_close(top.double(), right.sort(descending=True).values[:, :num_top], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(right.gather(1, top_ids.long()), top.double(), atol=1e-6, rtol=1e-6)
