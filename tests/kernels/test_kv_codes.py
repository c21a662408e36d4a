"""K and V in 8 bits: every number is rounded as torch rounds it, and attention sees what the cache holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quire.kernels.bench import cases
from quire.kernels.reference import kv_codes
from tests.kernels.test_attention import BIASED, TOLERANCE, is_triton, share_equally

TYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def attended(kernels, case: cases.Paged) -> torch.Tensor:
    return kernels("attention").paged_attention(case.q, case.k_cache, case.v_cache, case.inputs, case.spec)


def check(kernels, case: cases.Paged) -> None:
    # Kernels round queries and weights to float16, whatever type they are of.
    tolerance = TOLERANCE[torch.float16] if is_triton(kernels) else TOLERANCE[case.q.dtype]
    assert cases.relative_error(attended(kernels, case), cases.attention(case)) < tolerance


@pytest.mark.parametrize("kind", TYPES)
def test_all_numbers_of_16_bits_are_rounded_as_torch_rounds_them(kernels, kind):
    for dtype, scale in ((torch.bfloat16, 0.3), (torch.float16, 1.0)):
        every = torch.arange(-2**15, 2**15, dtype=torch.int16).view(dtype)
        k = every.view(16, 8, 512)
        cache = torch.zeros(1, 8, 16, 512, dtype=TYPES[kind])
        places = torch.arange(len(k), dtype=torch.int32)
        rounded, v = k.clone(), k.clone()
        kernels("rotary").rotary_and_cache(v.clone(), rounded, v, None, places, places, cache, cache.clone(), scale,
                                           scale)
        right = kv_codes.encoded(every, scale, TYPES[kind]).float()
        assert right[every.isnan()].eq(torch.finfo(TYPES[kind]).max).all()
        assert torch.equal(kv_codes.numbers(cache).transpose(1, 2).flatten(), right), "held"
        assert torch.equal(rounded.float().flatten(), right), "and left for who attends to it there"
        assert torch.equal(v.float().flatten(), right)
        finite = every.isfinite() & (every.float().abs() < 100)
        torch.testing.assert_close((right * scale)[finite], every.float()[finite],
                                   rtol=1 / 16 if kind == "e4m3" else 1 / 8, atol=1e-3)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_size", "dtype"), [
    (4, 2, 32, 16, torch.float16), pytest.param(7, 1, 40, 32, torch.float32, marks=pytest.mark.slow)])
def test_decodes_prompts_and_chunks(kernels, kind, heads, kv_heads, head_dim, block_size, dtype):
    check(kernels, cases.paged([1, 17, 0, 5, 40], [1] * 3 + [5, 3], heads=heads, kv_heads=kv_heads,
                               head_dim=head_dim, block_size=block_size, dtype=dtype, codes=TYPES[kind],
                               poisoned=is_triton(kernels)))


@pytest.mark.parametrize("window", [21, *(pytest.param(window, marks=pytest.mark.slow) for window in (None, 1))])
def test_variants(kernels, monkeypatch, window):
    if is_triton(kernels):
        from quire.kernels import launch

        monkeypatch.setattr(launch, "SPLIT_MIN_TOKENS", 32)
        monkeypatch.setattr(launch, "num_splits", lambda *_: 4)
    check(kernels, cases.paged([1, 17, 0, 100, 5, 40], [1] * 4 + [5, 7], heads=4, kv_heads=2, head_dim=16,
                               codes=torch.float8_e4m3fn, window=window, poisoned=is_triton(kernels), **BIASED))


@pytest.mark.parametrize("window", [45, pytest.param(None, marks=pytest.mark.slow)])
def test_in_equal_shares(kernels, monkeypatch, window):
    if is_triton(kernels):
        share_equally(monkeypatch, 6, 1)
    base = cases.paged([1, 17, 0, 33, 90], [1] * 5, heads=2, kv_heads=1, head_dim=16, window=window,
                       codes=torch.float8_e4m3fn, poisoned=is_triton(kernels), **BIASED)
    check(kernels, base)


def test_a_common_beginning_is_read_once(kernels):
    check(kernels, cases.paged([50, 20, 71, 0], [1] * 4, heads=2, kv_heads=1, head_dim=32, codes=torch.float8_e4m3fn,
                               num_shared_blocks=3, outsiders=(1, 3), poisoned=is_triton(kernels)))


@pytest.mark.parametrize(("rotary_dim", "style", "num_splits", "in_shares"), [
    (12, "half", 4, False), (20, "interleaved", 1, True), pytest.param(0, "half", 1, False, marks=pytest.mark.slow)])
def test_fresh_keys_are_rounded_once_however_they_come_into_the_cache(kernels, monkeypatch, rotary_dim, style,
                                                                      num_splits, in_shares):
    if is_triton(kernels):
        from quire.kernels import launch

        monkeypatch.setattr(launch, "SPLIT_MIN_TOKENS", 32)
        monkeypatch.setattr(launch, "num_splits", lambda *_: num_splits)
        if in_shares:
            share_equally(monkeypatch, 6, 1)
    base = cases.paged([50, 0, 20, 17], [1, 1, 5, 17], heads=2, kv_heads=1, head_dim=32,
                       dtype=torch.float16, codes=torch.float8_e4m3fn)
    case = cases.with_fresh(base, rotary_dim, style)
    step = case.unrotated
    out = kernels("attention").paged_attention(step.q.clone(), step.k_cache, step.v_cache, step.inputs, step.spec,
                                               (case.fresh[0].clone(), case.fresh[1].clone(), case.fresh[2]))
    assert cases.relative_error(out, case.expected) < TOLERANCE[torch.float16]
    for ours, right in ((step.k_cache, case.k_cache), (step.v_cache, case.v_cache)):
        # A turned key may lie on the other side of where float16 rounds.
        torch.testing.assert_close(kv_codes.numbers(ours), kv_codes.numbers(right), rtol=1 / 8, atol=2**-9)
        assert (ours.view(torch.uint8) == right.view(torch.uint8)).float().mean() > 0.99


def test_what_is_too_large_for_float16_becomes_its_largest(kernels):
    case = cases.paged([20, 33], [1, 33], heads=2, kv_heads=1, head_dim=16, codes=torch.float8_e4m3fn)
    case.q.mul_(1e6)
    assert attended(kernels, case).isfinite().all()


def test_blocks_are_copied_code_by_code(kernels):
    caches = [torch.randint(0, 256, (9, 3, 16, 80), dtype=torch.uint8).view(dtype) for dtype in TYPES.values()]
    before = [cache.view(torch.uint8).clone() for cache in caches]
    sources, targets = torch.tensor([[5, 0, 5], [1, 6, 3]], dtype=torch.int32)
    kernels("blocks").copy_blocks(*caches, sources, targets)
    for cache, old in zip(caches, before):
        old[targets.long()] = old[sources.long()]
        assert torch.equal(cache.view(torch.uint8), old)


def test_a_chunk_sees_what_the_whole_prompt_sees(kernels, monkeypatch):
    """To the bit, where sums are in one order: prefill's tiles begin alike."""
    if is_triton(kernels):
        from quire.kernels import launch

        monkeypatch.setattr(launch, "whole_prefill_tile", lambda *_: None)
    whole = cases.paged([40], [40], heads=2, kv_heads=1, head_dim=16, codes=torch.float8_e4m3fn, dtype=torch.float16)
    k, v = (torch.randn(40, 1, 16).half() for _ in range(2))

    def step(first: int, last: int) -> torch.Tensor:
        inputs = type(whole.inputs)(**vars(whole.inputs))
        inputs.positions, inputs.slots = (x[first:last] for x in (whole.inputs.positions, whole.inputs.slots))
        inputs.query_starts = torch.tensor([0, last - first], dtype=torch.int32)
        inputs.context_lens = torch.tensor([last], dtype=torch.int32)
        inputs.host_query_lens, inputs.host_context_lens = [last - first], [last]
        inputs.max_query_len, inputs.max_context_len, inputs.scratch = last - first, last, {}
        inputs.first_whole = 0 if first == 0 else 1
        return kernels("attention").paged_attention(
            whole.q[first:last].clone(), whole.k_cache, whole.v_cache, inputs, replace(whole.spec),
            (k[first:last].clone(), v[first:last].clone(), None))

    right = step(0, 40)
    chunks = torch.cat([step(0, 19), step(19, 40)])
    if is_triton(kernels):
        assert torch.equal(chunks, right)
    else:
        assert cases.relative_error(chunks, right) < 1e-3
