"""Shows how far a fetch is: a bar on a terminal, a log line every few seconds elsewhere. Both on stderr.

Called by `quire pull` and by the process that fetches for `quire serve`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

import structlog

from quire.app.fetch_state import FetchState

if TYPE_CHECKING:
    from tqdm import tqdm

log = structlog.get_logger("quire")

LOG_S = 10.0
PATIENCE_S = 2.0  # a hub mostly answers sooner, and then there is nothing to wait for
SPEED_S = 10.0  # the speed is that of so many last seconds


class FetchProgress:
    """Context manager; the object itself is the `Report` that a fetch takes. `also` gets every state too."""

    def __init__(self, model: str, also: Callable[[FetchState], None] = lambda _: None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        # One bar is enough, and it is ours. The second is of ModelScope's client, and read when tqdm is imported.
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["TQDM_DISABLE"] = "1"
        self._model = model
        self._also = also
        self._clock = clock
        self._bar: tqdm | None = None
        self._seen: list[tuple[float, int]] = []  # when, and bytes then
        self._begun: tuple[float, int] | None = None
        self._next_line = 0.0

    def __enter__(self) -> FetchProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif error is None and self._begun is not None and self._seen[-1][1] > self._begun[1]:
            began, first = self._begun
            took_s, got = self._clock() - began, self._seen[-1][1] - first
            log.info("fetched", model=self._model, bytes=got, took_s=round(took_s, 1))

    def __call__(self, here: int, total: int) -> None:
        now = self._clock()
        if total and self._begun is None:
            self._begun, self._seen = (now, here), []
        self._seen = [(at, done) for at, done in self._seen if now - at <= SPEED_S] + [(now, here)]
        speed = self._bytes_per_s()
        eta_s = (total - here) / speed if total and speed else None
        self._also(FetchState("fetching", here, total, eta_s))
        if self._begun is None:  # the hub has not said how much there is
            if now - self._seen[0][0] < PATIENCE_S:
                return
        elif self._begun[1] >= total:
            return  # all of it was here before
        if sys.stderr.isatty():
            self._show(here, total)
        elif now >= self._next_line:
            self._next_line = now + LOG_S
            log.info("fetching", model=self._model, bytes=here, total_bytes=total or None,
                     percent=round(100 * here / total, 1) if total else None, bytes_per_s=round(speed),
                     eta_s=None if eta_s is None else round(eta_s))

    def _bytes_per_s(self) -> float:
        (first, before), (last, now) = self._seen[0], self._seen[-1]
        return max(0, now - before) / (last - first) if last > first else 0.0

    def _show(self, here: int, total: int) -> None:
        from tqdm import tqdm  # late: see above

        if self._bar is None:
            self._bar = tqdm(total=total or None, initial=here, desc=f"fetching {self._model}", unit="B",
                             unit_scale=True, file=sys.stderr, dynamic_ncols=True, disable=False)
        self._bar.total = total or None
        self._bar.update(here - self._bar.n)
        self._bar.refresh()
