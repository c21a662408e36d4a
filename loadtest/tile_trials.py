"""Trying tiles of kernels/launch.py on a GPU, and a table of what is found. Called by the measurements of kernels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import triton

from quire.kernels import compile_ahead, launch
from quire.kernels.bench.time_gpu import REPLAYS, median_us

Tile = TypeVar("Tile")
Calls = list[Callable[[], object]]


class Table:
    """Lines that are printed as they come, and kept for $OUT where that is set."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def show(self, line: str) -> None:
        print(line, flush=True)
        self._lines.append(line)

    def save(self, name: str) -> None:
        if os.environ.get("OUT"):
            (Path(os.environ["OUT"]) / name).write_text("\n".join(self._lines) + "\n")


def compile_all(function: str, tiles: list[Tile], calls: Calls) -> None:
    """What each of the calls needs with each tile that `function` of kernels/launch.py may give."""
    def steps() -> None:
        for tile in tiles:
            with _always(function, tile):
                for call in calls:
                    call()

    compile_ahead.kernels_of(steps, torch.cuda.current_device())


def time_each(function: str, tiles: list[Tile], calls: Calls, replays: int = REPLAYS) -> dict[Tile, float]:
    """Microseconds of a call, with each tile that fits."""
    times = {}
    for tile in tiles:
        with _always(function, tile), contextlib.suppress(triton.runtime.errors.OutOfResources):
            times[tile] = median_us(calls, replays)
    return times


@contextlib.contextmanager
def _always(function: str, tile: object) -> Iterator[None]:
    chosen = getattr(launch, function)
    setattr(launch, function, partial(_given, tile))
    try:
        yield
    finally:
        setattr(launch, function, chosen)


def _given(tile: object, *args: object) -> object:
    return tile
