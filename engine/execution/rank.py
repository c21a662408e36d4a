"""One rank as a process of its own: `python -m quire.engine.execution.rank`, its RankSpec on standard input.

Carries out the plans that the core sends, in order, until the core is gone. Started by
`quire.engine.execution.local_ranks`; a Ray actor calls `run` with the same spec. Whatever ends it, it tells the core
why before the others notice.
"""

from __future__ import annotations

import gc
import os
import queue
import signal
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import Any, NoReturn

import msgspec
import structlog
import zmq

from quire.engine.before_torch import settle
from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, PassingError, WeightError
from quire.engine.lifeline import die_with_parent
from quire.engine.logs import configure_logging
from quire.engine.plan import Advances, Allocate, Capacity, Done, Failed, FromRank, Prepared, RankLoading, ToRank
from quire.engine.stderr import dump_stacks_on_faults, stderr

LAST_WORDS_MS = 2000
ADVANCES_S = 0.5  # a rank's part of a long step says so often enough for the engine's beat of a second


class RankSpec(msgspec.Struct, frozen=True):
    rank: int  # stage * tensor-parallel size + place in the stage
    device_index: int  # among the GPUs that its process sees
    config: EngineConfig
    core: str  # ZeroMQ address that the core listens at
    meeting_host: str  # where ranks find each other
    meeting_port: int
    log_level: str = "info"

    @property
    def reports(self) -> bool:
        """Whether it is the one whose results the core hears: the first of the last stage."""
        return self.rank == reporting_rank(self.config)


def reporting_rank(config: EngineConfig) -> int:
    return config.args.num_ranks - config.args.tensor_parallel_size


class Link:
    """This rank's end of border 2. One per thread."""

    def __init__(self, spec: RankSpec, thread: str = "") -> None:
        self._context = zmq.Context()  # its own, so that closing waits for no other thread's link
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, f"{spec.rank}{thread}".encode())
        self._socket.setsockopt(zmq.LINGER, LAST_WORDS_MS)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.connect(spec.core)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(ToRank).decode

    def send(self, message: FromRank) -> None:
        self._socket.send(self._encode(message))

    def receive(self) -> Any:
        return self._decode(self._socket.recv())

    def close(self) -> None:
        """Returns once what was sent has left, or nobody took it for LAST_WORDS_MS."""
        self._socket.close()
        self._context.term()


def run(spec: RankSpec) -> int:
    """Serve the core; the exit code, once the rank broke. (In peace, it ends with its core: see `die_with_parent`.)"""
    link = Link(spec)
    try:
        _serve(spec, link)
    except (PassingError, WeightError, OSError) as error:
        failed = Failed("load", [str(error)])
    except ConfigError as error:
        failed = Failed("config", error.problems)
    except Exception:
        failed = Failed("broken", [traceback.format_exc()])
    link.send(failed)
    link.close()
    return 1


def _serve(spec: RankSpec, link: Link) -> None:
    # Late: a rank that cannot even import them has a link to say so.
    import torch
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from quire.engine.execution.capacity import settle_blocks
    from quire.engine.execution.collectives import join
    from quire.engine.execution.device import prepare_cpu
    from quire.engine.execution.model_runner import ModelRunner

    def progress(phase: str, fraction: float) -> None:
        link.send(RankLoading(phase, fraction))

    advanced = 0.0

    def advances() -> None:
        nonlocal advanced
        if (now := time.monotonic()) >= advanced + ADVANCES_S:
            advanced = now
            link.send(Advances())

    config = spec.config
    if config.device == "cuda":
        torch.cuda.set_device(spec.device_index)
    prepare_cpu(config.args)
    progress("meeting the other ranks", 0.0)
    # Loads have no limit, and of one that died all hear otherwise.
    store = TCPStore(spec.meeting_host, spec.meeting_port, is_master=False, timeout=timedelta(days=1))
    runner = ModelRunner(config, join(spec.rank, config, store, torch.device(config.device)), progress,
                         advances)
    link.send(Capacity(settle_blocks(runner, config, progress), runner.model.vocab_size, runner.model.generates))
    order = link.receive()
    assert isinstance(order, Allocate)
    runner.allocate(order.num_blocks)
    runner.prepare(progress)
    link.send(Prepared())
    gc.freeze()  # as in the core's process
    launched: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_report, args=(spec, runner, launched), name="results", daemon=True).start()
    while True:
        launched.put(runner.launch(link.receive()))


def _report(spec: RankSpec, runner: Any, launched: queue.SimpleQueue[Any]) -> None:
    """Waits for each step, so that what went wrong on this device is said by this rank, and not by one that waits."""
    import torch

    link = Link(spec, "-results")
    try:
        if spec.config.device == "cuda":
            torch.cuda.set_device(spec.device_index)  # each thread's own; waiting on GPU 0 would take memory there
        while True:
            result = launched.get().result()
            if spec.reports:
                link.send(Done(result, runner.num_graph_steps))
    except Exception:
        link.send(Failed("broken", [traceback.format_exc()]))
        link.close()
        _leave(1)


def _leave(code: int) -> NoReturn:
    """End this process, though a thread of it may hang on the device for ever: the interpreter would wait for that."""
    stderr.wait()
    os._exit(code)


def main() -> NoReturn:
    spec = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=RankSpec)
    configure_logging(spec.log_level)
    structlog.contextvars.bind_contextvars(rank=spec.rank)
    dump_stacks_on_faults()
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal, or who stops a service, may send it to all
        signal.signal(number, signal.SIG_IGN)  # the core decides
    settle()
    die_with_parent(int(sys.argv[1]), signalled=False)
    _leave(run(spec))


if __name__ == "__main__":
    main()
