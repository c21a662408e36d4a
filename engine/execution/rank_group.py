"""An executor of several ranks, each a process of its own: sends every plan to all of them, hears one.

Where the ranks run is a `Placement`'s business. One rank that ends or breaks ends all: RankError, with that rank's own
words. A rank that hangs is not waited for here: the core makes no step, and whoever watches the core sees that.
"""

from __future__ import annotations

import socket
import time
import weakref
from collections.abc import Callable

import msgspec
import structlog
import zmq
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, QuireError, RankError, WeightError
from quire.engine.execution.model_runner import Progress
from quire.engine.execution.placement import Placement
from quire.engine.execution.rank import RankSpec
from quire.engine.logs import level
from quire.engine.plan import (
    Advances,
    Allocate,
    Capacity,
    Done,
    Failed,
    FromRank,
    Prepared,
    RankLoading,
    StepPlan,
    StepResult,
    ToRank,
)

log = structlog.get_logger("engine")

LAST_WORDS_S = 0.3  # for what ranks say when they end


class RankGroup:
    def __init__(self, config: EngineConfig, placement: Placement, progress: Progress,
                 advances: Callable[[], None]) -> None:
        """Returns when all ranks are prepared. Raises as `executor` says."""
        self._advances = advances
        self._placement = placement
        self._stop_ranks = weakref.finalize(self, placement.stop)
        self._num_ranks = config.args.num_ranks
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(FromRank).decode
        self.num_graph_steps = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.bind(placement.address)
        address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._meeting: TCPStore | None = _meeting(placement.host)
        port = self._meeting.port
        try:
            specs = [RankSpec(rank, placement.device_index(rank), config, address, placement.host, port, level())
                     for rank in range(self._num_ranks)]
            self._ends = {end: rank for rank, end in enumerate(placement.start(specs))}
            for end in self._ends:
                self._poller.register(end, zmq.POLLIN)
            self.num_blocks, self.vocab_size, self.generates = self._boot(progress)
        except BaseException:
            self.close()
            raise

    def launch(self, plan: StepPlan) -> RankGroup:
        self._send(plan)
        return self

    def result(self) -> StepResult:
        """Of the oldest step that was launched and not asked for."""
        while True:
            _, message = self._receive()
            if isinstance(message, Done):
                self.num_graph_steps = message.num_graph_steps
                return message.result
            if isinstance(message, Advances):
                self._advances()

    def check(self) -> None:
        # Leaves the socket alone, where results may wait to be asked for: a rank that broke ends after its last words.
        if any(end in self._ends for end, _ in self._poller.poll(0)):
            raise self._cause({})

    def close(self) -> None:
        self._stop_ranks()
        self._socket.close()
        self._context.term()
        self._meeting = None

    def _boot(self, progress: Progress) -> tuple[int, int, bool]:
        """Blocks and vocabulary of the group, and whether its model has a head."""
        loading = _SlowestRank(self._num_ranks, progress)
        capacities: dict[int, Capacity] = {}
        prepared: set[int] = set()
        while len(prepared) < self._num_ranks:
            rank, message = self._receive()
            if isinstance(message, RankLoading):
                loading.update(rank, message.phase, message.fraction)
            elif isinstance(message, Prepared):
                prepared.add(rank)
            elif isinstance(message, Capacity):
                capacities[rank] = message
                num_blocks = min(capacity.num_blocks for capacity in capacities.values())
                if len(capacities) == self._num_ranks:
                    self._send(Allocate(num_blocks))
        return num_blocks, capacities[0].vocab_size, capacities[0].generates

    def _send(self, message: ToRank) -> None:
        frame = self._encode(message)
        for rank in range(self._num_ranks):
            self._socket.send_multipart([str(rank).encode(), frame])

    def _receive(self) -> tuple[int, FromRank]:
        """The next word of a rank; never Failed, whose error is raised."""
        ready = dict(self._poller.poll())
        if self._socket not in ready:
            raise self._cause({})
        rank, message = self._heard()
        if isinstance(message, Failed):
            raise self._cause({rank: message})
        return rank, message

    def _heard(self) -> tuple[int, FromRank]:
        identity, frame = self._socket.recv_multipart()
        return int(identity.partition(b"-")[0]), self._decode(frame)

    def _cause(self, failures: dict[int, Failed]) -> QuireError:
        """Why the group ends. Ranks break when another one is gone: one that ended without a word is the cause, and
        only then the first that said something."""
        deadline = time.monotonic() + LAST_WORDS_S
        while (left_s := deadline - time.monotonic()) > 0 and self._socket.poll(int(1000 * left_s)):
            rank, message = self._heard()
            if isinstance(message, Failed):
                failures.setdefault(rank, message)
        ended = {self._ends[end] for end, _ in self._poller.poll(0) if end in self._ends}
        if silent := ended - failures.keys():
            return self._placement.end_of(min(silent))
        rank, failed = next(iter(failures.items()))
        if failed.kind == "config":
            return ConfigError(failed.problems)
        if failed.kind == "load":
            return WeightError(failed.problems[0])
        return RankError(f"rank {rank} broke:\n{failed.problems[0]}")


def _meeting(host: str) -> TCPStore:
    """Where ranks find each other: listens at `host` alone, where TCPStore by itself would at all addresses."""
    listening = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listening.getsockname()[1]
    # Without libuv, whose server takes no descriptor in torch 2.5.
    return TCPStore(host, port, is_master=True, wait_for_workers=False, use_libuv=False,
                    master_listen_fd=listening.detach())


class _SlowestRank:
    """All load at once; what is shown is how far the last of them is."""

    def __init__(self, num_ranks: int, progress: Progress) -> None:
        self._progress = progress
        self._states = [(0, "starting", 0.0)] * num_ranks  # number of phases begun, the last of them, how much of it

    def update(self, rank: int, phase: str, fraction: float) -> None:
        begun, before, _ = self._states[rank]
        self._states[rank] = (begun + (phase != before), phase, fraction)
        _, phase, fraction = min(self._states, key=lambda state: (state[0], state[2]))
        self._progress(phase, fraction)
