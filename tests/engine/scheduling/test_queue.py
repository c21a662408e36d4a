from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.messages import Sampling
from engine.scheduling.queue import WaitingQueue
from engine.scheduling.request import Request


def request(priority: int, arrival: int) -> Request:
    made = Request(arrival, [1], Sampling(), 0, priority=priority)
    made.arrival = arrival
    made.order = (priority, arrival)
    return made


def test_the_best_priority_goes_first_and_within_it_the_first_come() -> None:
    queue = WaitingQueue()
    for priority, arrival in ((1, 0), (0, 1), (0, 2), (-1, 3)):
        queue.push(request(priority, arrival))
    assert [queue.pop().arrival for _ in range(4)] == [3, 1, 2, 0]


def test_a_request_that_returns_comes_before_those_that_came_after_it() -> None:
    queue = WaitingQueue()
    for arrival in range(3):
        queue.push(request(0, arrival))
    first = queue.pop()
    queue.push(first)
    assert queue.peek() is first


@given(st.lists(st.tuples(st.sampled_from(["push", "pop", "remove"]), st.integers(0, 3)), max_size=200))
def test_the_queue_behaves_like_a_sorted_list(actions: list[tuple[str, int]]) -> None:
    queue, model = WaitingQueue(), []
    for arrival, (action, number) in enumerate(actions):
        if action == "push":
            model.append(request(number, arrival))
            queue.push(model[-1])
        elif model and action == "pop":
            model.sort(key=lambda r: r.order)
            assert queue.peek() is model[0]
            assert queue.pop() is model.pop(0)
        elif model:
            queue.remove(model.pop(number % len(model)))
        assert len(queue) == len(model)


def test_removed_requests_are_not_kept() -> None:
    queue = WaitingQueue()
    requests = [request(0, arrival) for arrival in range(1000)]
    for each in requests:
        queue.push(each)
    for each in requests[1:]:
        queue.remove(each)
    assert len(queue._heap) <= 20
    assert queue.pop() is requests[0]
