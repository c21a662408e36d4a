"""What waits for a reader that does not read weighs what the output weighs, and nothing of it is lost."""

from __future__ import annotations

import copy
import sys
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from quire.engine.frontend.generation import SampleUpdate
from quire.engine.frontend.request import FAR_BEHIND, MOST_MERGED_TOKENS, Request
from quire.engine.messages import Sampling


class Unfinished:
    finished = False


def request() -> Request:
    return Request("r", [1], Sampling(), [], cast(Any, Unfinished()))


def update(index: int, token: int, **changes: Any) -> SampleUpdate:
    return SampleUpdate(index, f"{token} ", [token], [], **changes)


@given(samples=st.lists(st.integers(0, 90), max_size=600), reads=st.lists(st.integers(0, 600), max_size=20))
async def test_a_slow_reader_reads_what_a_fast_one_does(samples: list[int], reads: list[int]) -> None:
    asked = request()
    expected: dict[int, list[int]] = {}
    found: dict[int, list[int]] = {}
    texts: dict[int, str] = {}

    async def read() -> None:
        got = await asked.next_update()
        assert got is not None
        found.setdefault(got.index, []).extend(got.token_ids)
        texts[got.index] = texts.get(got.index, "") + got.text
        assert len(got.token_ids) <= MOST_MERGED_TOKENS

    for token, index in enumerate(samples):
        asked.put(update(index, token))
        expected.setdefault(index, []).append(token)
        for _ in range(reads.count(token) * 7):
            if asked.updates:
                await read()
    while asked.updates:
        await read()
    assert found == expected
    assert texts == {index: "".join(f"{token} " for token in tokens) for index, tokens in expected.items()}


async def test_the_first_and_the_last_word_of_a_sample_are_kept() -> None:
    asked = request()
    for token in range(FAR_BEHIND + 1):
        asked.put(update(0, token))
    asked.put(update(1, 0, num_cached_tokens=7))
    asked.put(update(1, 1))
    asked.put(update(1, 2, finish_reason="stop", stop_reason=5))
    last = copy.copy(asked.updates[-1])
    assert (last.index, last.token_ids, last.num_cached_tokens) == (1, [0, 1, 2], 7)
    assert (last.finish_reason, last.stop_reason) == ("stop", 5)


async def test_what_waits_is_few_updates() -> None:
    asked = request()
    for token in range(100_000):
        asked.put(update(0, token))
    assert len(asked.updates) < FAR_BEHIND + 100_000 / MOST_MERGED_TOKENS + 2
    assert sum(sys.getsizeof(waiting) for waiting in asked.updates) < 10 * 100_000
