from __future__ import annotations

import numpy as np

from quire.engine.execution.mrope_rows import MRopeRows
from quire.engine.execution.upload import Upload
from quire.engine.messages import Sampling
from quire.engine.model_facts.vision import Grid
from quire.engine.plan import NewRow, StepPlan


def new_row(row: int, num_tokens: int, images: list[tuple[int, Grid]]) -> NewRow:
    return NewRow(row, [0] * num_tokens, num_tokens, Sampling(), 0, images)


class Noted(Upload):
    """An upload that can be read before it is sent."""

    def array(self, name: str) -> np.ndarray:
        return self._arrays[name][1]


def step(rows: MRopeRows, plan: StepPlan) -> tuple[Noted, bool]:
    rows.enter(plan.new_rows)
    differ, upload = rows.differ(plan), Noted()
    rows.pack(plan, upload, differ=differ)
    return upload, differ


def test_an_image_turns_by_rows_and_columns_and_the_text_behind_it_goes_on_at_the_largest() -> None:
    rows = MRopeRows(merge_size=2)
    plan = StepPlan(0, rows=[4], starts=[0], num_tokens=[11], new_rows=[new_row(4, 11, [(3, (1, 4, 6))])])
    upload, differ = step(rows, plan)
    assert differ
    assert upload.array("mrope_positions").tolist() == [[0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7],
                                                        [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7],
                                                        [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]]
    assert upload.array("new_deltas").tolist() == [-3]


def test_deltas_of_several_images_add_up() -> None:
    rows = MRopeRows(merge_size=2)
    images = [(3, (1, 4, 6)), (10, (1, 2, 12))]  # which take 6 tokens and 3 positions, 6 tokens and 6 positions
    plan = StepPlan(0, rows=[1, 2], starts=[0, 0], num_tokens=[20, 5],
                    new_rows=[new_row(1, 20, images), new_row(2, 5, [])])
    upload, _ = step(rows, plan)
    assert upload.array("new_deltas").tolist() == [-3, 0]
    assert upload.array("mrope_positions")[:, 16:].tolist() == [[13, 14, 15, 16, 0, 1, 2, 3, 4]] * 3


def test_only_steps_up_to_the_last_image_differ_whatever_else_they_compute() -> None:
    rows = MRopeRows(merge_size=2)
    image = [(3, (1, 4, 6))]
    first = StepPlan(0, rows=[0], starts=[0], num_tokens=[5], new_rows=[new_row(0, 30, image)])
    assert step(rows, first)[1]
    assert not step(rows, StepPlan(1, rows=[7], starts=[4], num_tokens=[1]))[1], "another row alone"
    upload, differ = step(rows, StepPlan(2, rows=[7, 0], starts=[5, 5], num_tokens=[1, 6]))
    assert differ
    assert upload.array("mrope_positions").tolist() == [[5, 3, 3, 3, 3, 6, 7],
                                                        [5, 3, 4, 4, 4, 6, 7],
                                                        [5, 5, 3, 4, 5, 6, 7]]
    assert not step(rows, StepPlan(3, rows=[0], starts=[11], num_tokens=[19]))[1]
    other = StepPlan(4, rows=[0, 2], starts=[30, 0], num_tokens=[1, 9], new_rows=[new_row(2, 9, image)])
    assert step(rows, other)[0].array("mrope_positions")[:, 0].tolist() == [27] * 3, "a decode by its own delta"


def test_a_row_that_another_request_takes_over_knows_nothing_of_the_first() -> None:
    rows = MRopeRows(merge_size=2)
    step(rows, StepPlan(0, rows=[0], starts=[0], num_tokens=[5], new_rows=[new_row(0, 30, [(3, (1, 4, 6))])]))
    upload, differ = step(rows, StepPlan(1, rows=[0], starts=[0], num_tokens=[5], new_rows=[new_row(0, 5, [])]))
    assert not differ
    assert upload.array("new_deltas").tolist() == [0]
