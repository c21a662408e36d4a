"""A test with users as parts in which their number stood still, and as a whole. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quire.loadtest.report.measured import USERS, Load, Output, Run, Sent

_SHORTEST_S = 1.0  # what is shorter is a pause of those who come


@dataclass(frozen=True)
class Crowd:
    """How many users there were at a time."""

    at: float
    users: int
    is_whole: bool  # as many as there are to be: none is to come or to leave


def stages(sent: list[Sent], crowds: list[Crowd]) -> list[Run]:
    """A run for each number of users that stood still, in order, with the requests that were sent meanwhile and with
    what came meanwhile. Times of `sent` and `crowds` are of one clock; those of the runs begin at 0."""
    runs: list[Run] = []
    good = [one for one in sent if one.error is None]
    for start, end, users in _spans(crowds):
        inside = [replace(one, at=one.at - start) for one in sent if start <= one.at < end]
        if end - start >= _SHORTEST_S and inside:
            came = Output(sum(start <= one.at + one.total < end for one in good),
                          sum(one.tokens_between(start, end) for one in good))
            load = Load(f"{users} user{'s' * (users != 1)}", users, USERS)
            runs.append(Run(load, end - start, inside, came))
    return runs


def whole(sent: list[Sent], crowds: list[Crowd]) -> Run:
    """From the first look at the users to the end of the last request."""
    start = crowds[0].at
    moved = [replace(one, at=one.at - start) for one in sent]
    end = max(crowds[-1].at - start, *(one.at + one.total for one in moved), _SHORTEST_S)
    return Run(Load("whole run", axis=USERS), end, moved,
               users=[(crowd.at - start, float(crowd.users)) for crowd in crowds])


def _spans(crowds: list[Crowd]) -> list[tuple[float, float, int]]:
    """From when to when, and how many."""
    spans: list[tuple[float, float, int]] = []
    open_since: Crowd | None = None
    for crowd in [*crowds, Crowd(crowds[-1].at, 0, is_whole=False)] if crowds else []:
        if open_since is not None and (crowd.users != open_since.users or not crowd.is_whole):
            spans.append((open_since.at, crowd.at, open_since.users))
            open_since = None
        if open_since is None and crowd.is_whole and crowd.users:
            open_since = crowd
    return spans
