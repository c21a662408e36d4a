from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from quire.engine.messages import Sampling
from quire.engine.scheduling.queue import WaitingQueue
from quire.engine.scheduling.request import Request


def request(name: object = 0, *, priority: int = 0, key: str = "", weight: float = 1.0, tokens: int = 1) -> Request:
    return Request(name, [1] * tokens, Sampling(), 0, priority=priority, key_name=key, weight=weight)


def enter(queue: WaitingQueue, *requests: Request) -> None:
    for each in requests:
        queue.enter([each])


def names(queue: WaitingQueue) -> list[object]:
    return [queue.pop().key for _ in range(len(queue))]


def test_the_best_priority_goes_first_and_within_it_the_first_come() -> None:
    queue = WaitingQueue()
    enter(queue, *(request(name, priority=priority) for name, priority in enumerate((1, 0, 0, -1))))
    assert names(queue) == [3, 1, 2, 0]


def test_a_request_that_returns_comes_before_those_that_came_after_it() -> None:
    queue = WaitingQueue()
    enter(queue, *(request(name) for name in range(3)))
    first = queue.pop()
    queue.push(first)
    assert queue.peek() is first


def test_samples_of_a_prompt_keep_their_place_together() -> None:
    queue = WaitingQueue()
    samples = [request("a0"), request("a1")]
    queue.enter(samples)
    enter(queue, request("b"))
    assert queue.pop() is samples[0]
    queue.push(samples[1])
    assert names(queue) == ["a1", "b"]


ACTIONS = st.lists(st.tuples(st.sampled_from(["enter", "pop", "return", "remove"]), st.integers(0, 3),
                             st.integers(1, 9)), max_size=200)


@given(ACTIONS, st.integers(1, 3), st.booleans())
def test_the_queue_behaves_like_a_sorted_list(actions: list[tuple[str, int, int]], num_keys: int, hurry: bool) -> None:
    queue, waiting, popped = WaitingQueue(), [], []
    for arrival, (action, number, tokens) in enumerate(actions):
        if action == "enter":
            made = request(arrival, priority=number if hurry else 0, key=f"k{number % num_keys}", tokens=tokens)
            enter(queue, made)
            assert all(made.order > earlier.order for earlier in popped if earlier.priority == made.priority), (
                "a later one of the same priority comes before one that ran")
            waiting.append(made)
        elif action == "return" and popped:
            waiting.append(popped.pop())
            queue.push(waiting[-1])
        elif waiting and action == "pop":
            waiting.sort(key=lambda r: r.order)
            assert queue.peek() is waiting[0]
            waiting[0].num_total += 1  # as when it is planned
            popped.append(queue.pop())
            assert popped[-1] is waiting.pop(0)
            queue.charge(popped[-1], tokens)
        elif waiting and action == "remove":
            queue.remove(waiting.pop(number % len(waiting)))
        assert len(queue) == len(waiting)
        assert queue.num_tokens == sum(r.num_total for r in waiting)


@given(st.lists(st.tuples(st.sampled_from(["enter", "pop", "return", "remove"]), st.integers(1, 9)), max_size=200))
def test_with_one_key_it_is_first_come_first_served(actions: list[tuple[str, int]]) -> None:
    queue, waiting, popped = WaitingQueue(), [], []
    for arrival, (action, tokens) in enumerate(actions):
        if action == "enter":
            waiting.append(arrival)
            enter(queue, request(arrival, key="only", tokens=tokens))
        elif action == "return" and popped:
            waiting.append(popped[-1].key)
            queue.push(popped.pop())
        elif waiting and action == "pop":
            popped.append(queue.pop())
            assert popped[-1].key == min(waiting)
            waiting.remove(popped[-1].key)
            queue.charge(popped[-1], tokens)
        elif waiting and action == "remove":
            queue.remove(queue.peek())
            waiting.remove(min(waiting))


@given(st.integers(1, 5), st.integers(0, 60), st.integers(0, 40), st.floats(0.1, 10), st.data())
def test_a_newcomer_waits_for_one_request_of_each_key_that_floods(num_floods: int, num_queued: int, num_served: int,
                                                                  weight: float, data: st.DataObject) -> None:
    queue = WaitingQueue()
    for _ in range(num_queued):
        key = data.draw(st.integers(0, num_floods - 1))
        enter(queue, request(key=f"flood {key}", tokens=data.draw(st.integers(1, 50)), weight=weight))
    for _ in range(min(num_served, len(queue))):
        queue.pop()
    enter(queue, request("single", key="newcomer"))
    ahead = []
    while queue.peek().key != "single":
        ahead.append(queue.pop().key_name)
    assert max(Counter(ahead).values(), default=0) <= 1


@given(st.tuples(st.floats(0.25, 8), st.floats(0.25, 8)), st.data())
def test_shares_follow_weights_while_both_keys_wait(weights: tuple[float, float], data: st.DataObject) -> None:
    queue = WaitingQueue()
    longest = 20
    for _ in range(60):
        for key in range(2):
            enter(queue, request(key=str(key), tokens=data.draw(st.integers(1, longest)), weight=weights[key]))
    served = [0.0, 0.0]  # tokens over weight
    left = [60, 60]
    while min(left):
        each = queue.pop()
        key = int(each.key_name)
        left[key] -= 1
        served[key] += each.num_prompt_tokens / weights[key]
        assert abs(served[0] - served[1]) <= longest / weights[0] + longest / weights[1] + 1e-6


def test_tokens_produced_count_against_their_key() -> None:
    queue = WaitingQueue()
    enter(queue, *(request(f"{key}1", key=key, tokens=10) for key in "ab"), request("c", key="c", tokens=10))
    queue.charge(queue.pop(), 50)
    queue.charge(queue.pop(), 10)
    enter(queue, request("a2", key="a"), request("b2", key="b"))
    assert names(queue) == ["c", "b2", "a2"]


def test_a_flood_of_one_priority_is_no_burden_to_another() -> None:
    queue = WaitingQueue()
    enter(queue, *(request(f"urgent {i}", priority=-1, key="a", tokens=100) for i in range(9)))
    enter(queue, *(request(f"late {i}", key="a", tokens=10) for i in range(3)))
    for _ in range(9):
        queue.pop()
    enter(queue, request("single", key="b"))
    assert names(queue) == ["late 0", "single", "late 1", "late 2"]


def test_what_is_remembered_of_keys_goes_when_nothing_waits() -> None:
    queue = WaitingQueue()
    for number in range(100):
        enter(queue, request(number, key=f"key {number}", priority=number))
        queue.charge(queue.pop(), 5)
    assert not queue._levels


def test_removed_requests_are_not_kept() -> None:
    queue = WaitingQueue()
    requests = [request(name) for name in range(1000)]
    enter(queue, *requests)
    for each in requests[1:]:
        queue.remove(each)
    assert len(queue._heap) <= 20
    assert queue.pop() is requests[0]
