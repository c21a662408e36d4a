"""Where an engine's ranks run: in the core's own process, as processes beside it, or on the nodes of a Ray cluster."""

from __future__ import annotations

from typing import Protocol

from quire.engine.config import EngineArgs
from quire.engine.errors import RankError
from quire.engine.execution.hardware import Hardware
from quire.engine.execution.local_ranks import LocalRanks
from quire.engine.execution.model_runner import Progress
from quire.engine.execution.rank import RankSpec


class Placement(Protocol):
    """Ranks that are processes of their own."""

    address: str  # ZeroMQ address for the core to listen at
    host: str  # of this process, as ranks reach it

    def hardware(self) -> Hardware:
        """Of the machine that rank 0 is on; of all of them where they are alike, as they should be."""

    def device_index(self, rank: int) -> int:
        """Which of the GPUs that the rank's process sees is its own."""

    def start(self, specs: list[RankSpec]) -> list[int]:
        """File descriptors, one a rank, that become readable when it is over."""

    def end_of(self, rank: int) -> RankError:
        """Says how a rank that is over ended."""

    def stop(self) -> None:
        """End all that are left, and wait for that."""


def placement(args: EngineArgs, progress: Progress) -> Placement | None:
    """None: one rank, in this process. Waits for the devices of a cluster.

    Raises:
        ConfigError: there is no cluster, or no Ray.
    """
    if args.distributed_executor_backend == "ray":
        from quire.engine.execution.ray_ranks import RayRanks  # an optional dependency

        return RayRanks(args, progress)
    return LocalRanks() if args.num_ranks > 1 else None
