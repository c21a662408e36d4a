"""A step's inputs, gathered on the device by row number, are what a plain loop over the plan gives."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.engine.execution import batch
from quire.engine.execution.request_table import RequestTable
from quire.engine.execution.upload import Upload
from quire.engine.messages import Sampling
from quire.engine.plan import NewRow, StepPlan

BLOCK, LENGTH, ROWS = 16, 80, 6
CPU = torch.device("cpu")


@st.composite
def plans(draw) -> tuple[StepPlan, dict[int, list[int]], dict[int, list[int]]]:
    rows = draw(st.permutations(range(ROWS)))[: draw(st.integers(1, ROWS))]
    tokens, blocks, work = {}, {}, []
    for row in rows:
        tokens[row] = draw(st.lists(st.integers(0, 999), min_size=1, max_size=LENGTH - 1))
        blocks[row] = draw(st.lists(st.integers(0, 50), min_size=5, max_size=5))
        start = draw(st.integers(0, len(tokens[row]) - 1))
        work.append((row, start, draw(st.integers(1, len(tokens[row]) - start)), draw(st.booleans())))
    work.sort(key=lambda w: w[2] != 1)
    plan = StepPlan(
        0, *([w[i] for w in work] for i in range(4)),
        num_decodes=sum(w[2] == 1 for w in work),
        new_rows=[NewRow(row, tokens[row], 1, Sampling(temperature=0.5, top_k=row), row * 10**12) for row in rows],
        block_groups=[0] * 5 * len(rows),
        block_rows=[row for row in rows for _ in range(5)],
        block_columns=[column for _ in rows for column in range(5)],
        block_ids=[block for row in rows for block in blocks[row]],
    )
    return plan, tokens, blocks


@settings(deadline=None)
@given(plans())
def test_gathered_inputs_equal_a_loop_over_the_plan(drawn):
    plan, tokens, blocks = drawn
    table = RequestTable.empty(ROWS, LENGTH, BLOCK, CPU)
    upload = Upload()
    table.pack(plan, upload)
    batch.pack(plan, upload)
    batch.pack_samples(plan, upload)
    upload.send(CPU)
    table.apply(plan, upload)
    token_ids, inputs = batch.gather(plan, upload, table, BLOCK, host_lists=True)

    ids, positions, slots, last, starts = [], [], [], [], [0]
    for row, start, count in zip(plan.rows, plan.starts, plan.num_tokens):
        for position in range(start, start + count):
            ids.append(tokens[row][position])
            positions.append(position)
            slots.append(blocks[row][position // BLOCK] * BLOCK + position % BLOCK)
        starts.append(len(ids))
        last.append(len(ids) - 1)
    assert token_ids.tolist() == ids
    assert inputs.positions.tolist() == positions
    assert inputs.slots.tolist() == slots
    assert inputs.query_starts.tolist() == starts
    assert last == (list(range(len(ids))) if inputs.last_tokens is None else inputs.last_tokens.tolist())
    if not all(plan.samples):
        assert [plan.samples[place] for place in upload["sample_places"].tolist()] == [True] * sum(plan.samples)
    assert inputs.context_lens.tolist() == inputs.host_context_lens
    assert inputs.max_context_len == max(inputs.host_context_lens)
    assert inputs.max_query_len == max(plan.num_tokens)
    sampled = [(row, start + count) for row, start, count, samples
               in zip(plan.rows, plan.starts, plan.num_tokens, plan.samples) if samples]
    assert list(zip(upload["sample_rows"].tolist(), upload["sample_positions"].tolist())) == sampled
    for row in tokens:
        assert table.seeds[row] == row * 10**12
        assert table.top_k[row] == row


def test_an_upload_keeps_every_array_apart():
    import numpy as np

    upload = Upload()
    arrays = {"a": np.arange(3, dtype=np.int32), "b": np.array([2**60], np.int64), "c": np.zeros(0, np.int32),
              "d": np.array([[1.5, 2.5]], np.float32)}
    for name, array in arrays.items():
        upload.add(name, array)
    upload.send(CPU)
    for name, array in arrays.items():
        assert upload[name].tolist() == array.tolist()
        assert upload[name].shape == array.shape
