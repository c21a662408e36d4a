"""A graph's step, run here without the graph: whatever plan is packed into whatever size that has room, its logits and
tokens are those of the step that is carried out kernel by kernel."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.engine.execution import batch, kv_cache
from quire.engine.execution.graphs import MAX_PREFILLS, Size, StepGraphs, all_sizes, decode_sizes, predicted_bytes
from quire.engine.execution.request_table import RequestTable
from quire.engine.execution.upload import Upload
from quire.engine.messages import Sampling
from quire.engine.models.base import CausalLM
from quire.engine.plan import NewRow, StepPlan
from tests.engine.models import tiny
from tests.engine.models.paging import load

BLOCK, LENGTH, ROWS = 16, 64, 12
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    directory: Path = tmp_path_factory.mktemp("model")
    tiny.write(directory, "llama")
    return load(directory)


@st.composite
def plans(draw: Any) -> StepPlan:
    rows = draw(st.permutations(range(ROWS)))[: draw(st.integers(1, ROWS))]
    work = []
    for row in rows:
        start = draw(st.integers(0, 30))
        work.append((row, start, draw(st.sampled_from([1, 1, 1, 2, 7, 20])), draw(st.booleans())))
    work.sort(key=lambda w: w[2] != 1)
    num_decodes = sum(w[2] == 1 for w in work)
    while len(work) - num_decodes > MAX_PREFILLS:
        work.pop()
    tokens = st.integers(0, tiny.SIZES["vocab_size"] - 1)
    new_rows = [NewRow(row, draw(st.lists(tokens, min_size=start + n, max_size=start + n)), 1,
                       Sampling(temperature=0.8, top_k=row), row + 5) for row, start, n, _ in work]
    return StepPlan(
        0, *([w[i] for w in work] for i in range(4)), num_decodes=num_decodes, new_rows=new_rows,
        block_groups=[0] * 4 * len(work), block_rows=[w[0] for w in work for _ in range(4)],
        block_columns=[c for _ in work for c in range(4)],
        block_ids=[4 * w[0] + c for w in work for c in range(4)])


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plans(), st.integers(0, 3), st.integers(0, 9))
def test_a_packed_step_equals_the_step(model: CausalLM, plan: StepPlan, more_decodes: int, more_tokens: int) -> None:
    num_tokens = sum(plan.num_tokens[plan.num_decodes:])
    size = Size(max(1, plan.num_decodes + more_decodes), num_tokens + more_tokens if num_tokens else 0)
    table = RequestTable.empty(ROWS, LENGTH, BLOCK, CPU)
    shape = (model.num_layers, 4 * ROWS, model.num_kv_heads, BLOCK, model.head_dim, torch.float32, CPU)
    caches = kv_cache.allocate(*shape)
    for k, v in caches:
        k.normal_()
        v.normal_()
    copies = [(k.clone(), v.clone()) for k, v in caches]
    upload = Upload()
    table.pack(plan, upload)
    batch.pack(plan, upload)
    upload.send(CPU)
    table.apply(plan, upload)
    token_ids, inputs = batch.gather(plan, upload, table, BLOCK, host_lists=True)
    hidden = model.forward(token_ids, inputs, caches)
    assert hidden is not None
    right = model.logits(hidden[torch.tensor(plan.samples)])

    graphs = StepGraphs(model, table, copies, BLOCK, LENGTH)
    vector = torch.from_numpy(graphs.pack(plan, size))
    logits, sampled = graphs._step(size, vector)
    places = torch.from_numpy(size.sample_places(plan)).long()
    torch.testing.assert_close(logits[places], right, atol=1e-4, rtol=1e-4)
    for (k, v), (k_copy, v_copy) in zip(caches, copies):
        torch.testing.assert_close(k, k_copy)
        torch.testing.assert_close(v, v_copy)
    work = zip(plan.rows, plan.starts, plan.num_tokens, plan.samples)
    written = [int(table.tokens[row, start + n]) for row, start, n, samples in work if samples]
    assert written == sampled[places].tolist()


@given(st.integers(1, 2000))
def test_every_decode_step_that_may_run_has_a_size_without_much_padding(max_rows: int) -> None:
    sizes = decode_sizes(max_rows)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == min(max_rows, 1024)
    assert all(b <= 2 * a or b <= 8 for a, b in itertools.pairwise(sizes))


def test_the_smallest_size_with_room_is_chosen(model: CausalLM) -> None:
    graphs = StepGraphs(model, RequestTable.empty(ROWS, LENGTH, BLOCK, CPU), [], BLOCK, LENGTH)
    graphs._sizes = sorted(all_sizes(300, with_sharing=True), key=lambda s: (s.num_tokens, s.num_decodes))

    def size(decodes: int, prefills: list[int], shared: bool = False) -> Size | None:
        count = decodes + len(prefills)
        return graphs.size_for(StepPlan(0, [0] * count, [0] * count, [1] * decodes + prefills, [True] * count, decodes,
                                        shared_places=[0, 1] if shared else [], num_shared_tokens=16 * shared))

    assert size(3, []) == Size(4)
    assert size(3, [], shared=True) == Size(16, shared=True)
    assert size(300, []) == Size(300)
    assert size(0, [40]) == Size(1, 64)
    assert size(20, [30, 40]) == Size(64, 128)
    assert size(0, [2] * (MAX_PREFILLS + 1)) is None
    assert size(1, [5000]) is None
    assert size(20, [30], shared=True) is None, "no mixed graph knows of a shared beginning"
    graphs._sizes = [each for each in graphs._sizes if not each.shared]
    assert size(3, [], shared=True) == Size(4), "none was captured for what is shared: it is read for each"


@pytest.mark.parametrize("rows", [1, 12, 1024])
def test_what_all_graphs_take_is_told_by_some(rows: int) -> None:
    """On a stand-in for the device: a pool, as large as the largest needs it, and the driver's share for each."""
    sizes = all_sizes(rows, with_sharing=True)

    def taken(captured: list[Size]) -> int:
        pool = max((size.num_tokens * (3 if size.shared else 2) for size in captured), default=0)
        return pool * 2**20 + len(captured) * 7 * 2**20

    done: list[Size] = []
    found = predicted_bytes(sizes, done.extend, lambda: 2**40 - taken(done))
    assert found == taken(sizes)
    assert len(done) == len(set(done)) <= 20
