"""Which custom_id is on which line of the input, for millions of lines: about 20 bytes for each, whatever its length.

A custom_id is known by 64 bits of a keyed hash. Two that share them are told apart by reading again, and another key is
drawn; so among the input's own, a hash stands for one custom_id alone.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b

import numpy as np

from quire.app.batch.line import BadLine, Task

MOST_NAMED = 10


class Duplicates(Exception):
    """A sentence for each custom_id that is on more than one line, the first MOST_NAMED."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CustomIds:
    """Of the requests that `read` yields, each time it is called.

    Raises Duplicates.
    """

    def __init__(self, read: Callable[[], Iterable[Task | BadLine]],
                 new_key: Callable[[], bytes] = lambda: os.urandom(16), digest_size: int = 8) -> None:
        self._digest_size = digest_size
        while True:
            self._key = new_key()
            shared = self._read(read())
            if shared:
                problems = list(_duplicates(item for item in read() if self._digest(item.custom_id or "") in shared))
                if problems:
                    raise Duplicates(problems)
                continue
            return

    def _read(self, requests: Iterable[Task | BadLine]) -> set[int]:
        """Takes them all in; returns the hashes that are there more than once."""
        digests, numbers = array("Q"), array("Q")
        self.num_requests = self.last_line = 0
        for item in requests:
            self.num_requests += 1
            self.last_line = item.number
            if item.custom_id is not None:
                digests.append(self._digest(item.custom_id))
                numbers.append(item.number)
        unsorted = np.frombuffer(digests, dtype=np.uint64)
        order = np.argsort(unsorted)
        self._digests, self._numbers = unsorted[order], np.frombuffer(numbers, dtype=np.uint64)[order]
        return {int(digest) for digest in self._digests[1:][self._digests[1:] == self._digests[:-1]]}

    def line_of(self, custom_id: str) -> int:
        """0 where no line has it."""
        digest = np.uint64(self._digest(custom_id))
        place = int(np.searchsorted(self._digests, digest))
        found = place < len(self._digests) and self._digests[place] == digest
        return int(self._numbers[place]) if found else 0

    def _digest(self, custom_id: str) -> int:
        # surrogatepass: JSON may spell half a character.
        return int.from_bytes(blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=self._digest_size,
                                      key=self._key).digest(), "little")


def _duplicates(requests: Iterable[Task | BadLine]) -> Iterator[str]:
    lines: dict[str, list[int]] = {}
    for item in requests:
        if item.custom_id is not None:
            lines.setdefault(item.custom_id, []).append(item.number)
    repeated = [(custom_id, numbers) for custom_id, numbers in lines.items() if len(numbers) > 1]
    for custom_id, numbers in repeated[:MOST_NAMED]:
        shown = ", ".join(map(str, numbers[:MOST_NAMED])) + (", ..." if len(numbers) > MOST_NAMED else "")
        yield f"custom_id {custom_id[:80]!r} is on lines {shown}; each must have its own"
    if len(repeated) > MOST_NAMED:
        yield f"and {len(repeated) - MOST_NAMED} more custom_ids are on several lines"
