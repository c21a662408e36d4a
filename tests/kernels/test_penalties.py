from __future__ import annotations

import torch

from quire.kernels.bench import cases


def test_penalties_are_the_formula_token_by_token(kernels):
    torch.manual_seed(3)
    vocab_size, rows, max_len = 40, 5, 1100  # longer than one program's piece
    tokens = torch.randint(vocab_size, (rows, max_len), dtype=torch.int32)
    row_ids = torch.tensor([4, 0, 2, 3], dtype=torch.int32)
    num_prompt = torch.tensor([3, 0, 10, 5], dtype=torch.int32)
    num_total = torch.tensor([9, 6, 10, 1090], dtype=torch.int32)
    numbers = [(1.3, 0.0, 0.0), (0.8, 0.5, -0.25), (1.5, 1.0, 1.0), (1.0, 0.1, 0.01)]
    repetition, presence, frequency = torch.tensor(numbers).T.contiguous()
    logits = torch.randn(4, vocab_size)
    right = torch.stack([
        cases.penalized(logits[i], tokens[row, :p].tolist(), tokens[row, p:t].tolist(), *numbers[i])
        for i, (row, p, t) in enumerate(zip(row_ids.tolist(), num_prompt.tolist(), num_total.tolist()))])
    kernels("penalties").apply_penalties(logits, tokens, row_ids, num_prompt, num_total, repetition, presence,
                                         frequency)
    assert cases.relative_error(logits, right) < 1e-6


def test_rows_without_penalties_keep_their_bits(kernels):
    logits = torch.randn(2, 30)
    before = logits.clone()
    one, zero = torch.ones(2), torch.zeros(2)
    numbers = torch.tensor([4, 4], dtype=torch.int32)
    kernels("penalties").apply_penalties(logits, torch.ones(2, 8, dtype=torch.int32), torch.arange(2).int(),
                                         numbers // 2, numbers, one, zero, zero)
    assert torch.equal(logits, before)
