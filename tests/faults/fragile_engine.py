"""The engine's own program, but some steps end badly: `python -m tests.faults.fragile_engine` and the engine's flags.

A step that begins a prompt with a token of these dies of it:
  DEADLY_TOKEN: the process is gone, each time.
  HUNGRY_TOKEN: torch.OutOfMemoryError, once for each file name in the variable FRAGILE_ONCE.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from quire.engine.__main__ import main
from quire.engine.execution.executor import InProcessExecutor
from quire.engine.execution.pending import Pending
from quire.engine.plan import StepPlan

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


if __name__ == "__main__":
    InProcessExecutor.launch = launch  # type: ignore[method-assign]
    sys.exit(main())
