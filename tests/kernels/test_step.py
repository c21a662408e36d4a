from __future__ import annotations

import pytest
import torch

NUM_ROWS, LENGTH, BLOCK_SIZE = 9, 70, 4


def table(num_groups: int) -> dict[str, torch.Tensor]:
    blocks = -(-LENGTH // BLOCK_SIZE)
    return {"tokens": torch.randint(0, 1000, (NUM_ROWS, LENGTH), dtype=torch.int32),
            "block_tables": torch.randint(0, 500, (num_groups, NUM_ROWS, blocks), dtype=torch.int32),
            "floats": torch.rand(6, NUM_ROWS), "top_k": torch.randint(0, 50, (NUM_ROWS,), dtype=torch.int32),
            "seeds": torch.randint(-2**62, 2**62, (NUM_ROWS,))}


@pytest.mark.parametrize(("num_seqs", "num_tokens", "num_groups"), [(1, 1, 1), (5, 5, 3), (3, 300, 1), (200, 200, 1),
                                                                   (8, 129, 2)])
@pytest.mark.parametrize("moves", [False, True])
def test_everything_comes_from_its_row(kernels, num_seqs, num_tokens, num_groups, moves):
    rows = torch.randint(0, NUM_ROWS, (num_seqs,), dtype=torch.int32)
    token_rows = torch.randint(0, NUM_ROWS, (num_tokens,), dtype=torch.int32)
    positions = torch.randint(-1, LENGTH, (num_tokens,), dtype=torch.int32)
    state = table(num_groups)
    context_lens = torch.randint(0, LENGTH + 1, (num_seqs,), dtype=torch.int32)
    deltas = torch.randint(-40, 40, (NUM_ROWS,), dtype=torch.int32) if moves else None
    step = kernels("step").gather_step(rows, context_lens, token_rows, positions, *state.values(), BLOCK_SIZE, deltas)
    for i, (row, position) in enumerate(zip(token_rows.tolist(), positions.tolist())):
        place = max(position, 0)
        blocks = state["block_tables"][:, row, place // BLOCK_SIZE].tolist()
        assert step.places[i] == (place + deltas[row] if moves and position >= 0 else place)
        assert step.slots[:, i].tolist() == [block * BLOCK_SIZE + place % BLOCK_SIZE if position >= 0 else -1
                                             for block in blocks]
        assert step.token_ids[i] == state["tokens"][row, place]
    for i, row in enumerate(rows.tolist()):
        held = -(-context_lens[i] // BLOCK_SIZE)
        assert torch.equal(step.block_tables[:, i, :held], state["block_tables"][:, row, :held])
        assert torch.equal(step.floats[:, i], state["floats"][:, row])
        assert (step.top_k[i], step.seeds[i]) == (state["top_k"][row], state["seeds"][row])


def test_tokens_are_put_where_they_belong_and_nowhere_else(kernels):
    tokens = torch.full((NUM_ROWS, LENGTH), -7, dtype=torch.int32)
    rows, positions = torch.randperm(NUM_ROWS).int(), torch.randint(0, LENGTH, (NUM_ROWS,), dtype=torch.int32)
    positions[::3] = -1
    expected = tokens.clone()
    for row, position, token_id in zip(rows.tolist(), positions.tolist(), range(NUM_ROWS)):
        if position >= 0:
            expected[row, position] = token_id
    kernels("step").put_tokens(tokens, rows, positions, torch.arange(NUM_ROWS, dtype=torch.int32))
    assert torch.equal(tokens, expected)
