"""Which images' features the ranks keep, in which rows, and who still needs them. Pure integers; the rows themselves
are `engine/execution/feature_rows.py`'s, on every rank alike.

Requests share features under equal salts alone, as they do prefixes: how soon an answer comes would tell one client
what images another has sent.

An image is encoded whole in the step that first computes a token of it. Its features are held while a running request
misses tokens of it, and stay behind for others with an equal digest until their rows are needed, the least recently
used first. Called by `scheduler`.

Progress: who holds an image misses nothing but tokens of the budget, so holders let go; and once a request waits for
room, those behind it encode nothing, so room comes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from quire.engine.prompt_images import Image
from quire.engine.scheduling.draft import Draft
from quire.engine.scheduling.free_rows import FreeRows
from quire.engine.scheduling.request import Request

Key = tuple[bytes, bytes]  # the root of the request's prefixes, which its salt makes, and the image's digest


@dataclass(slots=True, eq=False)
class Held:
    first_row: int
    num_rows: int
    num_holders: int = 0


class FeatureCache:
    __slots__ = ("_free", "_kept", "_unheld", "num_encoded")

    def __init__(self, num_rows: int) -> None:
        self._kept: OrderedDict[Key, Held] = OrderedDict()  # the least recently used first
        self._free = FreeRows(num_rows)  # where nothing is kept
        self._unheld = FreeRows(num_rows)  # and where no holder needs what is kept
        self.num_encoded = 0

    def can_start(self, request: Request, start: int, draft: Draft) -> bool:
        """Whether the step can compute the token at `start`."""
        image = next((image for image in request.images if image.first <= start < image.end), None)
        if image is None or (request.root, image.digest) in self._kept:
            return True
        if not draft.encodes_no_more and self._unheld.find(image.num_tokens) is None:
            draft.encodes_no_more = True
        return not draft.encodes_no_more

    def reach(self, request: Request, most: int, draft: Draft) -> int:
        """How many of the request's next tokens the step can compute, `most` at most; encodes the images among them."""
        start = request.num_computed
        for image in request.images:
            if image.first >= start + most:
                break
            if image.end > start and not self._hold(request, image, draft):
                return max(image.first - start, 0)
        return most

    def release_passed(self, request: Request) -> None:
        """Lets go of images whose tokens are all planned: steps in flight read the rows before later ones write."""
        passed = [first for first, held in request.held.items() if first + held.num_rows <= request.num_computed]
        for first in passed:
            self._let_go(request.held.pop(first))

    def release(self, request: Request) -> None:
        for held in request.held.values():
            self._let_go(held)
        request.held.clear()

    def _hold(self, request: Request, image: Image, draft: Draft) -> bool:
        if image.first in request.held:
            return True
        key = request.root, image.digest
        held = self._kept.get(key)
        if held is None:
            if draft.encodes_no_more or (first_row := self._make_room(image.num_tokens)) is None:
                draft.encodes_no_more = True
                return False
            self._free.take(first_row, image.num_tokens)
            held = self._kept[key] = Held(first_row, image.num_tokens)
            draft.encode(image, first_row)
            self.num_encoded += 1
        self._kept.move_to_end(key)
        if not held.num_holders:
            self._unheld.take(held.first_row, held.num_rows)
        held.num_holders += 1
        request.held[image.first] = held
        return True

    def _let_go(self, held: Held) -> None:
        held.num_holders -= 1
        if not held.num_holders:
            self._unheld.give(held.first_row, held.num_rows)

    def _make_room(self, num_rows: int) -> int | None:
        """The first of so many rows that are free now; None where those that are held leave no such stretch."""
        if self._unheld.find(num_rows) is None:
            return None
        forgotten = []
        for key, held in self._kept.items():
            if self._free.find(num_rows) is not None:
                break
            if not held.num_holders:
                self._free.give(held.first_row, held.num_rows)
                forgotten.append(key)
        for key in forgotten:
            del self._kept[key]
        return self._free.find(num_rows)
