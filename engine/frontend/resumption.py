"""Which requests a new engine gets again, and which of them is to blame for the end of the one before.

A request is suspect when an engine ended after a step had taken it up and before it produced a token there: the engine
may have died of it. Any token clears it, and what only waited was never under suspicion. The new engine takes suspects
up one at a time (`engine/trials.py`), so a culprit is the only suspect when it strikes again, and is then given up.

Kills from outside count only together where one cause may have struck each time: in one place of the prompt. What was
killed elsewhere than before, as a long prompt is that gets on between kills, begins anew. Called by `client`; knows no
sockets.
"""

from __future__ import annotations

from collections.abc import Iterable

from quire.engine.frontend.request import ANYWHERE, Request

# An engine that broke by itself: two in a row are enough. A kill from outside rarely has to do with a request: four.
BREAK_SUSPICION, KILL_SUSPICION, GIVE_UP = 2, 1, 4


def culprits(requests: Iterable[Request], *, after_kill: bool) -> list[Request]:
    """Judges the unfinished requests once for each engine that ended, all that it said having been handled.

    Returns those that are to be given up; the others are to be submitted to the new engine.
    """
    found = []
    for request in requests:
        if request.started and not request.productive:
            _suspect(request, after_kill)
        request.started = request.productive = False
        request.place = ANYWHERE
        if request.suspicion >= GIVE_UP:
            found.append(request)
    return found


def _suspect(request: Request, after_kill: bool) -> None:
    struck = request.struck if request.suspicion else ANYWHERE
    in_common = max(struck[0], request.place[0]), min(struck[1], request.place[1])
    if in_common[0] < in_common[1]:
        request.struck = in_common
    else:
        request.struck = request.place
        if after_kill:
            request.suspicion = 0
    request.suspicion += KILL_SUSPICION if after_kill else BREAK_SUSPICION
