"""The engine's own program, but some steps end badly: `python -m tests.faults.fragile_engine` and the engine's flags.

A step that begins a prompt with a token of these dies of it:
  DEADLY_TOKEN: the process is gone, each time.
  HUNGRY_TOKEN: torch.OutOfMemoryError, once for each file name in the variable FRAGILE_ONCE.

With the variable FRAGILE_DIE_AFTER, the name of a file, the engine is a fork of this process, and the next another fork
whenever one has died: what takes long to import is imported once. An engine is gone, and the file too, right after it
has told as many tokens of a sample as the file says; the next leaves beside it, in .known, how many its client knows.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import msgspec
import torch
import zmq

from quire.engine.__main__ import main
from quire.engine.assembly import assemble
from quire.engine.config import EngineArgs
from quire.engine.execution.executor import InProcessExecutor
from quire.engine.execution.pending import Pending
from quire.engine.messages import Delta, Down, Submit, Up
from quire.engine.plan import StepPlan
from quire.engine.server import EngineServer

DEADLY_TOKEN, HUNGRY_TOKEN = 31337, 31338

_launch = InProcessExecutor.launch


def launch(self: InProcessExecutor, plan: StepPlan) -> Pending:
    for row in plan.new_rows:
        if DEADLY_TOKEN in row.token_ids:
            os.kill(os.getpid(), signal.SIGSEGV)
        if HUNGRY_TOKEN in row.token_ids and not Path(os.environ["FRAGILE_ONCE"]).exists():
            Path(os.environ["FRAGILE_ONCE"]).touch()
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
    return _launch(self, plan)


PR_SET_PDEATHSIG = 1
LEAVING_S = 20.0  # most that a frame may take from its hand-over to ZeroMQ's thread until it has left this process


class MortalServer(EngineServer):
    """Dies after so many tokens."""

    order = Path()
    num_told: ClassVar[Counter[int]] = Counter()  # of each sample
    last_sent: zmq.MessageTracker

    def _deliver(self, produced: Iterable[tuple[object, Delta]]) -> None:
        produced = list(produced)
        # Read before a client hears what it may have waited for with its next order.
        order = int(self.order.read_text()) if self.order.exists() else None
        super()._deliver(produced)
        for _, delta in produced:
            self.num_told[delta.id] += len(delta.token_ids)
        most = max((self.num_told[delta.id] for _, delta in produced), default=0)
        if order is not None and most >= order:
            self.order.unlink()
            self.last_sent.wait(LEAVING_S)
            os.kill(os.getpid(), signal.SIGKILL)

    def _send(self, identity: bytes, message: Up) -> None:
        tracker = self._socket.send_multipart([identity, self._encode(message)], copy=False, track=True)
        assert tracker is not None
        self.last_sent = tracker

    def _handle(self, identity: bytes, message: Down) -> None:
        if self._core is not None and isinstance(message, Submit) and message.resumed:
            known = max(len(sample.output_token_ids) for sample in message.samples)
            self.order.with_suffix(".known").write_text(str(known))
        super()._handle(identity, message)


def die_with_parent() -> None:
    """Also where a test is killed, nothing is left behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def again_and_again() -> None:
    """Until this process is killed. An engine that is never run brings all that engines import late."""
    args = msgspec.json.decode(sys.argv[sys.argv.index("--args") + 1], type=EngineArgs)
    die_with_parent()
    assemble(args, lambda phase, fraction: None, lambda: None)
    while True:
        engine = os.fork()
        if not engine:
            die_with_parent()
            os._exit(main())
        os.waitpid(engine, 0)


if __name__ == "__main__":
    InProcessExecutor.launch = launch  # type: ignore[method-assign]
    if "FRAGILE_DIE_AFTER" in os.environ:
        MortalServer.order = Path(os.environ["FRAGILE_DIE_AFTER"])
        sys.modules["quire.engine.__main__"].EngineServer = MortalServer  # type: ignore[attr-defined]
        again_and_again()
    sys.exit(main())
