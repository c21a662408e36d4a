from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.bench import cases
from kernels.reference.attention import paged_attention

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}
HEADS = [(1, 1), (3, 1), (8, 2), (7, 1)]


def check(kernels, case: cases.Paged) -> None:
    out = kernels("attention").paged_attention(case.q, case.k_cache, case.v_cache, case.inputs, case.scale)
    assert out.is_contiguous()
    assert out.dtype == case.q.dtype
    assert cases.relative_error(out, cases.attention(case)) < TOLERANCE[case.q.dtype]


def is_triton(kernels) -> bool:
    return kernels("attention").__name__ == "kernels.attention"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_decodes_at_block_boundaries(kernels, heads, kv_heads, dtype):
    check(kernels, cases.paged([1, 15, 16, 17, 33, 70], [1] * 6, heads=heads, kv_heads=kv_heads, head_dim=32,
                               dtype=dtype, poisoned=is_triton(kernels)))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_prompts_whole_and_in_chunks(kernels, heads, kv_heads, dtype):
    check(kernels, cases.paged([5, 17, 40, 33], [5, 17, 3, 32], heads=heads, kv_heads=kv_heads, head_dim=32,
                               dtype=dtype, poisoned=is_triton(kernels)))


@pytest.mark.parametrize("head_dim", [40, 64, 80])
@pytest.mark.parametrize("block_size", [16, 32])
def test_mixed_batches_of_any_head_dim(kernels, head_dim, block_size):
    check(kernels, cases.paged([31, 1, 9, 35], [1, 1, 9, 4], heads=4, kv_heads=2, head_dim=head_dim,
                               block_size=block_size, poisoned=is_triton(kernels)))


def test_one_token_prompts_among_the_prefills(kernels):
    check(kernels, cases.paged([4, 6, 1, 12], [1, 3, 1, 1], heads=2, kv_heads=1, head_dim=16))


@pytest.mark.parametrize("max_context", [0, 3000])  # one part, and cut into parts
def test_padded_sequences_are_left_alone(kernels, max_context):
    case = cases.paged([20, 3, 0, 0], [1] * 4, heads=4, kv_heads=2, head_dim=32, poisoned=is_triton(kernels))
    case.inputs.max_context_len = max(max_context, 20)
    check(kernels, case)


def test_long_contexts_are_cut_and_merged(kernels, monkeypatch):
    if is_triton(kernels):
        from kernels import launch

        monkeypatch.setattr(launch, "SPLIT_MIN_TOKENS", 32)
    case = cases.paged([1, 31, 32, 33, 64, 65, 260], [1] * 7, heads=2, kv_heads=1, head_dim=16,
                       poisoned=is_triton(kernels))
    if is_triton(kernels):
        monkeypatch.setattr(launch, "num_splits", lambda *_: 8)
    check(kernels, case)


def test_a_batch_of_uneven_lengths_is_grouped(kernels):
    contexts = [200, 3, 90, 17, 201, 64]
    if is_triton(kernels):
        contexts = [min(c, 70) for c in contexts]
    check(kernels, cases.paged(contexts, [1] * 6, heads=2, kv_heads=1, head_dim=16))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 70), st.integers(1, 30)), min_size=1, max_size=6), st.integers(0, 6))
def test_reference_is_the_formula_for_any_batch(sequences, num_decodes):
    queries = [1 if i < num_decodes else n for i, (_, n) in enumerate(sequences)]
    contexts = [earlier + n for (earlier, _), n in zip(sequences, queries)]
    case = cases.paged(contexts, queries, heads=6, kv_heads=2, head_dim=16)
    for layer in range(2):  # the second reads what the first worked out
        case.q.mul_(layer + 1)
        out = paged_attention(case.q, case.k_cache, case.v_cache, case.inputs, case.scale)
        assert cases.relative_error(out, cases.attention(case)) < 2e-6
