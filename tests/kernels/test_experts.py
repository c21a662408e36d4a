from __future__ import annotations

import pytest
import torch

from quire.kernels.bench import cases


@pytest.mark.parametrize(("scoring", "renormalize"), [("softmax", True), ("softmax", False), ("sigmoid", True)])
def test_a_token_goes_to_its_best_experts(kernels, scoring, renormalize):
    logits = torch.randn(5, 12)
    ids, weights = kernels("routing").route(logits, 3, scoring=scoring, renormalize=renormalize)
    scores = logits.double().softmax(-1) if scoring == "softmax" else logits.double().sigmoid()
    right = scores.topk(3)
    assert torch.equal(ids.long(), right.indices)
    expected = right.values / right.values.sum(-1, keepdim=True) if renormalize else right.values
    assert cases.relative_error(weights, expected) < 1e-6


@pytest.mark.parametrize(("num_tokens", "num_experts", "chosen", "at_once"), [
    (1, 5, 2, 8192), (9, 3, 1, 8192), (40, 6, 3, 8192), (40, 6, 3, 0)])
def test_experts_are_the_formula(kernels, monkeypatch, num_tokens, num_experts, chosen, at_once):
    module = kernels("experts")
    if hasattr(module, "_SORTED_BY_ONE"):
        monkeypatch.setattr(module, "_SORTED_BY_ONE", at_once)
    x = torch.randn(num_tokens, 40)
    gate_up, down = torch.randn(num_experts, 2 * 20, 40) / 6, torch.randn(num_experts, 40, 20) / 4
    ids = torch.stack([torch.randperm(num_experts)[:chosen] for _ in range(num_tokens)]).int()
    weights = torch.rand(num_tokens, chosen)
    out = module.gated_experts(x, gate_up, down, ids, weights, "silu")
    assert cases.relative_error(out, cases.gated_experts(x, gate_up, down, ids, weights, "silu")) < 1e-6
