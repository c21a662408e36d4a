"""Which images' features the ranks keep, in which rows, and who still needs them. Pure integers; the rows themselves
are `engine/execution/feature_rows.py`'s, on every rank alike.

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
from quire.engine.scheduling.request import Request


@dataclass(slots=True, eq=False)
class Held:
    first_row: int
    num_rows: int
    num_holders: int = 0


class FeatureCache:
    __slots__ = ("_kept", "_num_rows", "num_encoded")

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._kept: OrderedDict[bytes, Held] = OrderedDict()  # by digest, the least recently used first
        self.num_encoded = 0

    def can_start(self, request: Request, start: int, draft: Draft) -> bool:
        """Whether the step can compute the token at `start`."""
        image = next((image for image in request.images if image.first <= start < image.end), None)
        if image is None or image.digest in self._kept:
            return True
        if not draft.encodes_no_more and self._gap(image.num_tokens, held_only=True) is None:
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
            request.held.pop(first).num_holders -= 1

    def release(self, request: Request) -> None:
        for held in request.held.values():
            held.num_holders -= 1
        request.held.clear()

    def _hold(self, request: Request, image: Image, draft: Draft) -> bool:
        if image.first in request.held:
            return True
        held = self._kept.get(image.digest)
        if held is None:
            if draft.encodes_no_more or (first_row := self._make_room(image.num_tokens)) is None:
                draft.encodes_no_more = True
                return False
            held = self._kept[image.digest] = Held(first_row, image.num_tokens)
            draft.encode(image, first_row)
            self.num_encoded += 1
        self._kept.move_to_end(image.digest)
        held.num_holders += 1
        request.held[image.first] = held
        return True

    def _make_room(self, num_rows: int) -> int | None:
        """The first of so many rows that are free now; None where those that are held leave no such stretch."""
        if self._gap(num_rows, held_only=True) is None:
            return None
        unheld = iter([digest for digest, held in self._kept.items() if not held.num_holders])
        while (first_row := self._gap(num_rows)) is None:
            del self._kept[next(unheld)]
        return first_row

    def _gap(self, num_rows: int, *, held_only: bool = False) -> int | None:
        """The first of the first so many rows that nobody has; with `held_only`, that no holder needs."""
        end = 0
        for held in sorted(self._kept.values(), key=lambda held: held.first_row):
            if held.num_holders or not held_only:
                if held.first_row - end >= num_rows:
                    return end
                end = held.first_row + held.num_rows
        return end if self._num_rows - end >= num_rows else None
