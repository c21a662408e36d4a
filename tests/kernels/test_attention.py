from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.kernels.bench import cases
from quire.kernels.reference.attention import paged_attention

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}
HEADS = [(1, 1), (3, 1), (8, 2), (7, 1)]
BIASED = {"softcap": 2.0, "alibi": True, "sinks": True}
VARIANTS = {  # windows shorter than a tile, a block, one sequence's chunk
    "window": {"window": 20}, "own position alone": {"window": 1}, "cap": {"softcap": 3.0}, "alibi": {"alibi": True},
    "sinks": {"sinks": True}, "all": {"window": 9, **BIASED}}


def check(kernels, case: cases.Paged) -> None:
    out = kernels("attention").paged_attention(case.q, case.k_cache, case.v_cache, case.inputs, case.spec)
    assert out.is_contiguous()
    assert out.dtype == case.q.dtype
    assert cases.relative_error(out, cases.attention(case)) < TOLERANCE[case.q.dtype]


def share_equally(monkeypatch, num_programs: int, min_tiles: int) -> None:
    from quire.kernels import launch

    monkeypatch.setattr(launch, "BALANCED_MIN_SEQS", 1)
    monkeypatch.setattr(launch, "BALANCED_MIN_PAIRS", 1)
    monkeypatch.setattr(launch, "BALANCED_MIN_TILES", min_tiles)
    monkeypatch.setattr(launch, "num_multiprocessors", lambda _: num_programs // 2)  # the interpreter has 2 on each


def is_triton(kernels) -> bool:
    return kernels("attention").__name__ == "quire.kernels.attention"


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_decodes_prompts_and_chunks(kernels, variant):
    check(kernels, cases.paged([1, 70, 17, 0, 40, 5, 60, 33], [1] * 5 + [5, 7, 33], heads=6, kv_heads=2, head_dim=16,
                               poisoned=is_triton(kernels), **VARIANTS[variant]))


@pytest.mark.parametrize("window", [None, 110])
def test_parts_are_those_of_the_window(kernels, monkeypatch, window):
    cut = []
    if is_triton(kernels):
        from quire.kernels import launch

        monkeypatch.setattr(launch, "SPLIT_MIN_TOKENS", 32)
        monkeypatch.setattr(launch, "num_splits", lambda device, num_programs, longest: cut.append(longest) or 4)
    check(kernels, cases.paged([1, 31, 120, 200], [1] * 4, heads=2, kv_heads=1, head_dim=16,
                               poisoned=is_triton(kernels), window=window, **BIASED))
    assert cut == ([window or 200] if is_triton(kernels) else [])


def test_layers_of_other_windows_share_a_step(kernels):
    case = cases.paged([70, 40, 33], [1, 1, 12], heads=2, kv_heads=1, head_dim=16)
    for window in (None, 20, 30, None):
        case.spec = replace(case.spec, window=window)
        check(kernels, case)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(71, 1, 16), (5, 5, 16), (40, 8, 16), (2, 1, 512)])
def test_any_ratio_of_heads_and_width(kernels, heads, kv_heads, head_dim):
    check(kernels, cases.paged([33, 4, 20], [1, 1, 5], heads=heads, kv_heads=kv_heads, head_dim=head_dim,
                               poisoned=is_triton(kernels)))


def test_long_contexts_are_cut_and_merged(kernels, monkeypatch):
    if is_triton(kernels):
        from quire.kernels import launch

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
@given(st.lists(st.tuples(st.integers(0, 70), st.integers(1, 30)), min_size=1, max_size=6), st.integers(0, 6),
       st.sampled_from([None, 1, 5, 16, 40, 200]), st.sampled_from([{}, *VARIANTS.values()]))
def test_reference_is_the_formula_for_any_batch(sequences, num_decodes, window, variant):
    queries = [1 if i < num_decodes else n for i, (_, n) in enumerate(sequences)]
    contexts = [earlier + n for (earlier, _), n in zip(sequences, queries)]
    case = cases.paged(contexts, queries, heads=6, kv_heads=2, head_dim=16, **{**variant, "window": window})
    for layer in range(2):  # the second reads what the first worked out
        case.q.mul_(layer + 1)
        out = paged_attention(case.q, case.k_cache, case.v_cache, case.inputs, case.spec)
        assert cases.relative_error(out, cases.attention(case)) < 2e-6


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS[1:])
@pytest.mark.parametrize("num_splits", [1, 4])
def test_a_common_beginning_is_read_once_for_all_who_have_it(kernels, monkeypatch, heads, kv_heads, dtype, num_splits):
    if is_triton(kernels):
        from quire.kernels import launch

        monkeypatch.setattr(launch, "SPLIT_MIN_TOKENS", 32)
        monkeypatch.setattr(launch, "num_splits", lambda *_: num_splits)
    case = cases.paged([50, 49, 20, 71, 0, 83], [1] * 6, heads=heads, kv_heads=kv_heads, head_dim=32, dtype=dtype,
                       num_shared_blocks=3, outsiders=(2, 4), poisoned=is_triton(kernels))
    check(kernels, case)


@pytest.mark.parametrize("window", [None, 40])
def test_a_common_beginning_is_read_by_all_variants_and_left_aside_by_windows(kernels, window):
    check(kernels, cases.paged([50, 49, 20, 71], [1] * 4, heads=4, kv_heads=2, head_dim=16, num_shared_blocks=3,
                               outsiders=(2,), window=window, **BIASED))


def test_a_common_beginning_of_nothing_changes_nothing(kernels):
    case = cases.paged([50, 3], [1, 1], heads=4, kv_heads=2, head_dim=32, poisoned=is_triton(kernels))
    case.inputs.shared = (torch.zeros(2, dtype=torch.int32), torch.full((2,), -1, dtype=torch.int32))
    check(kernels, case)


SHAPES, SHARES = [(8, 2, 64, 16), (3, 3, 40, 32), (7, 1, 32, 8)], [(6, 3), (2, 1), (40, 1)]
OF_EACH_ONE = [(*shape, *shares) for shape, shares in zip(SHAPES, SHARES)]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_size", "num_programs", "min_tiles"), [
    pytest.param(*shape, *shares, marks=[] if (*shape, *shares) in OF_EACH_ONE else pytest.mark.slow)
    for shape in SHAPES for shares in SHARES])
def test_many_decodes_in_equal_shares(kernels, monkeypatch, heads, kv_heads, head_dim, block_size, num_programs,
                                      min_tiles):
    if is_triton(kernels):
        share_equally(monkeypatch, num_programs, min_tiles)
    base = cases.paged([1, 15, 0, 16, 17, 33, 200, 0, 64, 31], [1] * 10, heads=heads, kv_heads=kv_heads,
                       head_dim=head_dim, block_size=block_size, poisoned=is_triton(kernels))
    for _ in range(2):  # what one step leaves behind must not disturb the next
        check(kernels, base)
    case = cases.with_fresh(base, head_dim)
    step = case.unrotated
    out = kernels("attention").paged_attention(step.q.clone(), step.k_cache, step.v_cache, step.inputs, step.spec,
                                               case.fresh)
    assert cases.relative_error(out, case.expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("window", [None, 21, 45])
def test_variants_in_equal_shares(kernels, monkeypatch, window):
    if is_triton(kernels):
        share_equally(monkeypatch, 6, 1)
    check(kernels, cases.paged([1, 17, 0, 33, 140, 64], [1] * 6, heads=4, kv_heads=2, head_dim=16, window=window,
                               poisoned=is_triton(kernels), **BIASED))


@pytest.mark.parametrize("in_equal_shares", [False, True])
def test_what_one_sequence_has_of_nan_stays_with_it(kernels, monkeypatch, in_equal_shares):
    if is_triton(kernels):
        from quire.kernels import launch

        monkeypatch.setattr(launch, "BALANCED_MIN_SEQS", 1 if in_equal_shares else 1000)
        monkeypatch.setattr(launch, "BALANCED_MIN_PAIRS", 1)
    case = cases.paged([40, 70, 33], [1] * 3, heads=4, kv_heads=2, head_dim=32)
    right = cases.attention(case)
    case.v_cache[case.inputs.block_tables[1, :5].long()] = torch.nan
    out = kernels("attention").paged_attention(case.q, case.k_cache, case.v_cache, case.inputs, case.spec)
    assert out[1].isnan().all()
    assert cases.relative_error(out[::2], right[::2]) < TOLERANCE[torch.float32]


@pytest.mark.parametrize(("heads", "kv_heads", "rotary_dim", "style", "num_splits", "num_shared_blocks", "moved"), [
    (3, 1, 32, "half", 1, 0, False), (8, 2, 32, "half", 4, 0, True), (7, 1, 12, "half", 4, 2, False),
    (2, 2, 32, "half", 1, 2, True), (2, 1, 20, "interleaved", 1, 2, False), (2, 1, 0, "half", 4, 0, False)])
def test_fresh_keys_are_turned_and_kept_and_attended(kernels, monkeypatch, heads, kv_heads, rotary_dim, style,
                                                     num_splits, num_shared_blocks, moved):
    if is_triton(kernels):
        from quire.kernels import launch

        monkeypatch.setattr(launch, "SPLIT_MIN_TOKENS", 32)
        monkeypatch.setattr(launch, "num_splits", lambda *_: num_splits)
    base = cases.paged([50, 33, 49, 0, 70, 1, 20, 40], [1, 1, 1, 1, 1, 1, 5, 40], heads=heads, kv_heads=kv_heads,
                       head_dim=32, num_shared_blocks=num_shared_blocks, outsiders=(1, 3, 5))
    case = cases.with_fresh(base, rotary_dim, style, moved=moved)
    step = case.unrotated
    for _ in range(2):  # what one step leaves behind must not disturb the next
        q = step.q.clone()
        out = kernels("attention").paged_attention(q, step.k_cache, step.v_cache, step.inputs, step.spec,
                                                   (case.fresh[0].clone(), case.fresh[1].clone(), case.fresh[2]))
        assert cases.relative_error(out, case.expected) < TOLERANCE[torch.float32]
    torch.testing.assert_close(step.k_cache, case.k_cache)
    torch.testing.assert_close(step.v_cache, case.v_cache)
