"""Work in pieces: all of it is done, in turn, and none of it holds the loop."""

from __future__ import annotations

import asyncio

import pytest

from quire.app.turns import TURN_S, Turns


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_pieces_are_done_in_turn_and_the_loop_goes_on_between() -> None:
    clock = Clock()
    turns = Turns(clock)
    done: list[str] = []

    def piece(name: str) -> bool:
        clock.now += TURN_S / 2
        done.append(name)
        return done.count(name) < 3

    turns.enter(lambda: piece("a"))
    turns.enter(lambda: piece("b"))
    while len(done) < 6:
        before = len(done)
        await asyncio.sleep(0)
        assert len(done) - before <= 2
    assert done == ["a", "b"] * 3


async def test_one_that_fails_does_not_hold_up_the_others() -> None:
    caught: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: caught.append(context["exception"]))
    turns = Turns()
    done = asyncio.Event()

    def broken() -> bool:
        raise RuntimeError("broken")

    def last() -> bool:
        done.set()
        return False

    turns.enter(broken)
    turns.enter(last)
    await asyncio.wait_for(done.wait(), 5)
    assert [str(error) for error in caught] == ["broken"]


@pytest.mark.parametrize("size", [1, 100])
async def test_what_enters_later_is_done_too(size: int) -> None:
    turns = Turns()
    for _ in range(3):
        done = asyncio.Event()
        left = iter(range(size))
        turns.enter(lambda left=left, done=done: next(left, None) is not None or bool(done.set()))  # type: ignore[misc]
        await asyncio.wait_for(done.wait(), 5)
