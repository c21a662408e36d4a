"""Which of several engines a request goes to: where its beginning is cached, unless that one has too much to do.

Pure: knows loads, the beginnings of prompts and the names of keys; no sockets, no clocks, no text. Each HTTP worker has
a router of its own, asked by `engine_group`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from quire.engine.messages import KeyLimits, Status

SAMPLE_TOKENS = 128  # what an unfinished sample weighs beside a prompt: how long it will be, nobody knows
MAX_BEGINNINGS = 16384  # remembered, 19 of a long prompt; about 3 MB


def _ends(first: int = 64, last: int = 4096) -> list[int]:
    """Where beginnings end: every 64 tokens, from 512 on at steps of a quarter, so that long prompts cost little."""
    ends = [first]
    while (end := ends[-1] + max(first, ends[-1] // 4 // first * first)) <= last:
        ends.append(end)
    return [*ends, last]


ENDS = _ends()


class Load:
    """How much work an engine has, in tokens: prompts that wait to be read, and a weight for each unfinished sample.

    This worker's own exactly, the others' as of the engine's last word.
    """

    __slots__ = ("others", "own")

    def __init__(self) -> None:
        self.own = 0
        self.others = 0

    @property
    def total(self) -> int:
        return self.own + self.others

    def heard(self, status: Status) -> None:
        told = status.num_waiting_tokens + (status.num_running + status.num_waiting) * SAMPLE_TOKENS
        self.others = max(0, told - self.own)

    def lost(self) -> None:
        """The engine is away: what others have there is unknown, our own waits for its return."""
        self.others = 0


def is_limited(key: KeyLimits) -> bool:
    """Whether an engine counts what the key does, so that all of it must go to one."""
    return bool(key.requests_per_minute or key.tokens_per_minute or key.max_concurrent)


class Router:
    def __init__(self, num_engines: int, first: int) -> None:
        """Among equals the engine `first`, modulo their number, comes first: workers should not all begin with one."""
        self._order = [(first + i) % num_engines for i in range(num_engines)]
        self._known: OrderedDict[int, int] = OrderedDict()  # a beginning's hash -> a bit for each engine that had it

    def choose(self, prompt_token_ids: list[int], cache_salt: str, loads: Sequence[int], ready: Sequence[int]) -> int:
        """One of `ready`; of all, where none is. What was chosen is taken to hold the prompt from now on.

        The engine with the longest known beginning gets it, unless its load is beyond the least one's by more than a
        quarter and the tokens that the beginning saves: then the least loaded.
        """
        places = [place for place in self._order if place in ready] or self._order
        hashes = list(_hashes(prompt_token_ids, cache_salt))
        chosen = least = min(places, key=loads.__getitem__)
        holders, saved = self._holders(hashes, sum(1 << place for place in places))
        if saved:
            chosen = min((place for place in places if holders >> place & 1), key=loads.__getitem__)
            if 4 * loads[chosen] > 5 * loads[least] + 4 * saved:
                chosen = least
        self._remember(hashes, chosen)
        return chosen

    def home(self, key_name: str, ready: Sequence[int]) -> int:
        """Where all requests of a limited key go, whichever worker has them: the same while the same are ready."""
        return max(ready or self._order, key=lambda place: hashlib.blake2b(f"{place} {key_name}".encode()).digest())

    def forget(self, place: int) -> None:
        """The engine's cache is gone."""
        others = ~(1 << place)
        self._known = OrderedDict((name, left) for name, holders in self._known.items() if (left := holders & others))

    def _holders(self, hashes: list[int], places: int) -> tuple[int, int]:
        """Those of `places` (bits) that hold the longest beginning, and its tokens."""
        saved = 0
        for end, name in zip(ENDS, hashes):
            found = self._known.get(name, 0) & places
            if not found:
                break
            places, saved = found, end
        return places, saved

    def _remember(self, hashes: list[int], place: int) -> None:
        # The longest first: it is the first to be forgotten, and what remains can still be reached from its beginning.
        known = self._known
        for name in reversed(hashes):
            known[name] = known.get(name, 0) | 1 << place
            known.move_to_end(name)
        while len(known) > MAX_BEGINNINGS:
            known.popitem(last=False)


def _hashes(token_ids: list[int], cache_salt: str) -> Iterator[int]:
    """Of the prompt's beginnings, chained, each with the salt in it: under another salt no cached block is shared."""
    name, start = hash(cache_salt), 0
    for end in ENDS:
        if end > len(token_ids):
            return
        name = hash((name, *token_ids[start:end]))
        yield name
        start = end
