from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.kernels.bench import cases
from quire.kernels.reference import sampling as reference


def draw(kernels, logits: torch.Tensor, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seeds=None, positions=None,
         filtered=None) -> torch.Tensor:
    rows = logits.shape[0]

    def column(value, dtype):
        return value if isinstance(value, torch.Tensor) else torch.full((rows,), value, dtype=dtype)

    if filtered is None:
        filtered = not (isinstance(top_k, int) and top_k == 0 and top_p == 1.0 and min_p == 0.0)
    return kernels("sampling").sample(
        logits, column(temperature, torch.float32), column(top_k, torch.int32), column(top_p, torch.float32),
        column(min_p, torch.float32), torch.zeros(rows, dtype=torch.int64) if seeds is None else seeds,
        torch.arange(rows, dtype=torch.int32) if positions is None else positions, filtered=filtered)


def reference_kernels(stem: str):
    assert stem == "sampling"
    return reference


def test_temperature_zero_is_the_first_of_the_largest(kernels):
    logits = torch.randn(4, 5000)
    logits[0, 4999] = logits[0, 4500] = 50.0
    logits[1, 100] = logits[1, 4200] = 50.0
    logits[2, 0] = logits[2, 1] = 50.0
    right = [4500, 100, 0, int(logits[3].argmax())]
    assert draw(kernels, logits, temperature=0.0).tolist() == right
    assert draw(kernels, logits, temperature=0.0, top_k=3, top_p=0.5).tolist() == right
    assert draw(kernels, logits.half(), temperature=0.0).tolist()[:3] == right[:3]


def test_greedy_and_drawn_rows_share_a_batch(kernels):
    logits = torch.randn(4, 300)
    temperature = torch.tensor([0.0, 1.0, 0.0, 0.5])
    together = draw(kernels, logits, temperature=temperature)
    assert together[[0, 2]].tolist() == logits[[0, 2]].argmax(1).tolist()
    for row in range(4):
        alone = draw(kernels, logits[row: row + 1], temperature=temperature[row: row + 1],
                     positions=torch.tensor([row]).int())
        assert alone[0] == together[row]


def test_triton_draws_what_the_reference_draws():
    pytest.importorskip("triton")
    from quire.kernels import sampling
    if type(sampling._draw).__name__ != "InterpretedFunction":
        pytest.skip("Triton compiles on this machine: kernels/bench/check_gpu.py checks it")
    logits = torch.randn(8, 5000) * 2
    seeds = torch.randint(-2**63, 2**63 - 1, (8,))
    positions = torch.randint(0, 100000, (8,), dtype=torch.int32)
    for filters in ({}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.02}, {"top_k": 100, "top_p": 0.8, "min_p": 0.001}):
        kwargs = {"temperature": 0.8, "seeds": seeds, "positions": positions, **filters}
        ours = draw(lambda _: sampling, logits, **kwargs)
        assert ours.tolist() == draw(reference_kernels, logits, **kwargs).tolist(), filters


def test_frequencies_follow_the_softmax(kernels):
    rows = 20000
    probabilities = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    logits = (probabilities.log() * 0.7).repeat(rows, 1)
    drawn = draw(reference_kernels, logits, temperature=0.7)
    # The interpreter takes 50 ms a row: that Triton draws the same in the first ones is as good as its own frequencies.
    assert draw(kernels, logits[:50], temperature=0.7).tolist() == drawn[:50].tolist()
    expected = probabilities * rows
    chi_square = float(((torch.bincount(drawn, minlength=6) - expected) ** 2 / expected).sum())
    assert chi_square < 20.5  # 5 degrees of freedom: exceeded once in a thousand; the draw itself never varies


@pytest.mark.parametrize("neighbours", ["positions", "seeds", "high seeds"])
def test_neighbouring_draws_are_independent(neighbours):
    """Pairs of consecutive draws over 8 equal tokens: 64 cells, 49 degrees of freedom beside the margins."""
    rows = 40000
    seeds, positions = torch.full((rows,), 12345), torch.full((rows,), 17, dtype=torch.int32)
    if neighbours == "positions":
        positions = torch.arange(rows, dtype=torch.int32)
    else:
        seeds = torch.arange(rows) << (32 if neighbours == "high seeds" else 0)
    drawn = draw(reference_kernels, torch.zeros(rows, 8), seeds=seeds, positions=positions).long()
    pairs = torch.bincount(drawn[:-1] * 8 + drawn[1:], minlength=64)
    expected = rows / 64
    assert float(((pairs - expected) ** 2 / expected).sum()) < 110  # 63 degrees of freedom, once in four thousand


def test_noise_is_exponential_and_uncorrelated_between_tokens():
    keys = reference._keys(torch.arange(20), torch.arange(20, dtype=torch.int32))
    noise = reference.exponential(keys, 50000)
    assert torch.isfinite(noise.log()).all()
    assert abs(float(noise.mean()) - 1) < 0.004
    assert abs(float(noise.var()) - 1) < 0.012
    # Kolmogorov-Smirnov against 1 - exp(-x), a million samples
    uniform = (1 - (-noise.double()).exp()).flatten().sort().values
    steps = torch.arange(1, uniform.numel() + 1) / uniform.numel()
    assert float((uniform - steps).abs().max()) < 1.95 / math.sqrt(uniform.numel())
    centred = noise - 1
    for lag in (1, 2, 16, 4096):
        assert abs(float((centred[:, lag:] * centred[:, :-lag]).mean())) < 0.005
    assert abs(float((centred[1:] * centred[:-1]).mean())) < 0.005


def test_only_kept_tokens_are_drawn_and_all_of_them(kernels):
    rows = 3000
    logits = torch.tensor([3.0, 2.5, 2.5, 2.0, 1.0, -1.0, -5.0])
    for filters in ({"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.3}, {"top_k": 4, "top_p": 0.7, "min_p": 0.1},
                    {"top_k": 100, "top_p": 1.0}, {"top_p": 0.0}, {"top_k": 1}):
        right = cases.kept(logits, 1.3, filters.get("top_k", 0), filters.get("top_p", 1.0), filters.get("min_p", 0.0))
        each = draw(reference_kernels, logits.repeat(rows, 1), temperature=1.3, filtered=True, **filters).tolist()
        assert draw(kernels, logits.repeat(6, 1), temperature=1.3, filtered=True, **filters).tolist() == each[:6]
        drawn = set(each)
        likely = right & (logits.softmax(0) > 0.05)
        assert drawn <= set(right.nonzero().flatten().tolist()), filters
        assert drawn >= set(likely.nonzero().flatten().tolist()), filters


rows_of_logits = st.lists(st.floats(-20, 20, width=16), min_size=1, max_size=50)


@settings(max_examples=150, deadline=None)
@given(rows_of_logits, st.integers(0, 60), st.floats(0.01, 1.0), st.sampled_from([0.0, 0.01, 0.2, 1.0]),
       st.sampled_from([0.5, 1.0, 2.0]))
def test_thresholds_keep_what_sorting_keeps(values, top_k, top_p, min_p, temperature):
    logits = torch.tensor(values)
    z = (logits / temperature).unsqueeze(0)
    threshold = reference._thresholds(z, torch.tensor([top_k]), torch.tensor([top_p]), torch.tensor([min_p]))
    ours = z[0] >= threshold[0]
    # A token whose mass before it is the target to within rounding may fall on either side.
    strict, loose = (cases.kept(logits, temperature, top_k, p, m)
                     for p, m in ((top_p - 1e-5, min_p * 1.00001), (min(top_p + 1e-5, 1.0), min_p * 0.99999)))
    assert bool((ours >= strict).all())
    assert bool((ours <= loose).all())


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_flat_rows_are_searched_to_their_end(kernels, top_p):
    """More kept tokens than are sorted at first, and a row where forbidden tokens are -inf."""
    logits = torch.rand(2, 3000) * 0.1
    logits[1, 5:] = -torch.inf
    from_sort = [cases.kept(row, 1.0, 0, top_p, 0.0) for row in logits]
    rows = 40 if kernels("sampling") is reference else 8
    for row, kept in zip(logits, from_sort):
        drawn = draw(kernels, row.repeat(rows, 1), top_p=top_p, seeds=torch.arange(rows))
        assert bool(kept[drawn.long()].all())
    thresholds = reference._thresholds(logits, torch.zeros(2).int(), torch.full((2,), top_p), torch.zeros(2))
    assert abs(int((logits[0] >= thresholds[0]).sum()) - int(from_sort[0].sum())) <= 1


@pytest.mark.parametrize("filters", [{"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 3, "top_p": 0.5}])
def test_an_infinite_logit_is_drawn_and_ends_every_search(kernels, filters):
    logits = torch.tensor([[1.0, torch.inf, 2.0, -torch.inf, 0.0]])
    assert draw(kernels, logits, **filters).tolist() == [1]
