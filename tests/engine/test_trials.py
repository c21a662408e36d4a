from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quire.engine.trials import Trials


class Suspects:
    def __init__(self) -> None:
        self.gone: set[int] = set()
        self.let_go: list[int] = []
        self.trials: Trials[int] = Trials(self._let_go)

    def _let_go(self, suspect: int) -> bool:
        if suspect in self.gone:
            return False
        self.let_go.append(suspect)
        return True


def test_suspects_go_one_at_a_time_in_the_order_they_came() -> None:
    suspects = Suspects()
    for number in range(3):
        suspects.trials.enter(number)
    assert suspects.let_go == [0]
    suspects.trials.settled(2)
    assert suspects.let_go == [0], "not the one on trial"
    suspects.trials.settled(0)
    suspects.trials.settled(0)
    assert suspects.let_go == [0, 1]


def test_one_that_ended_while_it_was_held_is_passed_over() -> None:
    suspects = Suspects()
    for number in range(3):
        suspects.trials.enter(number)
    suspects.gone.add(1)
    suspects.trials.settled(1)
    suspects.trials.settled(0)
    assert suspects.let_go == [0, 2]


@given(st.lists(st.sampled_from(["enter", "settle", "end a held one"]), max_size=60))
def test_never_two_on_trial_and_none_forgotten(actions: list[str]) -> None:
    suspects = Suspects()
    held: list[int] = []
    expected: list[int] = []
    on_trial: int | None = None
    for number, action in enumerate(actions):
        if action == "enter":
            held.append(number)
            suspects.trials.enter(number)
        elif action == "settle" and on_trial is not None:
            settled, on_trial = on_trial, None
            suspects.trials.settled(settled)
        elif action == "end a held one" and held:
            suspects.gone.add(held.pop(0))
        if on_trial is None and held:
            on_trial = held.pop(0)
            expected.append(on_trial)
        assert suspects.let_go == expected
