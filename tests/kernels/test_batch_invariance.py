"""With --batch-invariant, each row's result is the same to the bit, whatever else is computed with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.kernels import launch
from quire.kernels.bench import cases


@pytest.fixture(autouse=True)
def _invariant(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Triton's interpreter multiplies by numpy, whose libraries on some CPUs sum a row otherwise among other rows; a
    # GPU's matrix units do not.
    monkeypatch.setattr(np, "matmul", _row_by_row)
    launch.set_batch_invariant(True)
    yield
    launch.set_batch_invariant(False)


def _row_by_row(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.einsum("ij,jk->ik", a, b, dtype=dtype, casting="unsafe")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("num_outputs", "size", "biased"), [(33, 40, True), (16, 64, False)])
def test_a_product_is_right_and_its_rows_are_as_if_alone(kernels, dtype, num_outputs, size, biased):
    x, weight = torch.randn(37, size + 3, dtype=dtype)[:, :size], torch.randn(num_outputs, size, dtype=dtype)
    bias = torch.randn(num_outputs, dtype=dtype) if biased else None
    module = kernels("fixed_product")
    whole = module.fixed_product(x, weight, bias)
    assert cases.relative_error(whole, cases.product(x, weight, bias)) < (1e-6 if dtype == torch.float32 else 1e-3)
    if module.__name__ == "quire.kernels.fixed_product":
        for part in (slice(0, 1), slice(5, 21), slice(20, 37), slice(0, 0)):
            assert torch.equal(module.fixed_product(x[part], weight, bias), whole[part])


@pytest.mark.parametrize("variant", [
    {}, {"window": 1}, {"window": 9, "softcap": 2.0, "alibi": True, "sinks": True},
    *(pytest.param(variant, marks=pytest.mark.slow)
      for variant in ({"window": 20}, {"softcap": 3.0}, {"alibi": True}, {"sinks": True}))], ids=str)
def test_a_query_gets_the_same_alone_in_a_chunk_and_beside_others(kernels, variant):
    attention = kernels("attention")
    if attention.__name__ != "quire.kernels.attention":
        pytest.skip("the reference promises no bits")
    case = cases.paged([70, 61, 23, 40], [1, 7, 23, 38], heads=6, kv_heads=2, head_dim=32, poisoned=True, **variant)
    whole = attention.paged_attention(case.q, case.k_cache, case.v_cache, case.inputs, case.spec)
    assert cases.relative_error(whole, cases.attention(case)) < 2e-6
    start = 0
    for seq, (context, count) in enumerate(zip(case.contexts, case.queries)):
        for first, end in {(0, count), (count - 1, count), (0, (count + 1) // 2), (0, 1)}:
            part = only(case.inputs, seq, context - count + end, end - first)
            tokens = slice(start + first, start + end)
            out = attention.paged_attention(case.q[tokens], case.k_cache, case.v_cache, part, case.spec)
            assert torch.equal(out, whole[tokens]), (seq, first, end)
        start += count


def test_the_last_queries_alone_get_the_same(kernels):
    """As a model's last layer computes them. Not from the tokens' borders, which would be read past their end."""
    attention = kernels("attention")
    if attention.__name__ != "quire.kernels.attention":
        pytest.skip("the reference promises no bits")
    case = cases.paged([70, 61, 23, 40], [1, 7, 23, 38], heads=6, kv_heads=2, head_dim=32, poisoned=True)
    inputs = AttentionInputs(**{field.name: getattr(case.inputs, field.name) for field in fields(AttentionInputs)
                                if hasattr(case.inputs, field.name)})
    last = inputs.query_starts[1:] - 1
    whole = attention.paged_attention(case.q, case.k_cache, case.v_cache, case.inputs, case.spec)
    out = attention.paged_attention(case.q[last], case.k_cache, case.v_cache, inputs.of_last_tokens(), case.spec)
    assert torch.equal(out, whole[last])


def only(inputs: SimpleNamespace, seq: int, context: int, count: int) -> SimpleNamespace:
    """Of one of a step's sequences, `count` queries, of which the last sees `context` tokens."""
    return SimpleNamespace(**vars(inputs) | {
        "query_starts": torch.tensor([0, count], dtype=torch.int32), "block_tables": inputs.block_tables[seq:seq + 1],
        "context_lens": torch.tensor([context], dtype=torch.int32), "num_decodes": int(count == 1),
        "max_query_len": count, "max_context_len": context, "first_whole": 1, "scratch": {}})
