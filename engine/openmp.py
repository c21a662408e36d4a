"""How the CPU engine's threads wait for each other. Must be settled before torch brings its OpenMP library."""

from __future__ import annotations

import os

# libgomp spins some 300,000 times before it sleeps. On cores that others use too, each barrier then waits out a time
# slice: a step takes three times as long beside one busy process, and far longer beside a second one that spins. 1000
# halves that, for a tenth of the speed on cores of our own (docs/performance.md). A value in the environment wins.
SPIN_COUNT = "1000"


def share_cores() -> None:
    """Spin briefly, unless the environment says how to wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
