"""Where a plan meets its ranks: one in this process, or several that are processes of their own.

Called by the core, which learns from a rank its capacity, once, and then each step's result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from quire.engine.config import EngineConfig
from quire.engine.execution.capacity import settle_blocks
from quire.engine.execution.device import prepare_cpu
from quire.engine.execution.model_runner import ModelRunner, Progress
from quire.engine.execution.pending import Pending
from quire.engine.parallel import Parallel
from quire.engine.plan import StepPlan, StepResult


class Launched(Protocol):
    """A step on its way. Results are asked for in the order of the launches."""

    def result(self) -> StepResult:
        """Waits for it. Raises RankError where a rank that is a process of its own ended instead."""


class Executor(Protocol):
    @property
    def num_blocks(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def generates(self) -> bool:
        """Whether the model has a head."""

    @property
    def num_graph_steps(self) -> int:
        """Steps that a CUDA graph carried out."""

    def launch(self, plan: StepPlan) -> Launched:
        """Queue a step behind those before it."""

    def check(self) -> None:
        """Raises RankError where a rank that is a process of its own has ended: with no step to wait for, nobody else
        would notice."""

    def close(self) -> None:
        """Let go of the devices; nothing may be asked any more."""


class InProcessExecutor:
    """Rank 0 of 1, on this process's device."""

    def __init__(self, config: EngineConfig, progress: Progress, advances: Callable[[], None]) -> None:
        prepare_cpu(config.args)
        self._runner = ModelRunner(config, Parallel(), progress, advances)
        self.num_blocks = settle_blocks(self._runner, config, progress)
        self._runner.allocate(self.num_blocks)
        self._runner.prepare(progress)

    @property
    def vocab_size(self) -> int:
        return self._runner.model.vocab_size

    @property
    def generates(self) -> bool:
        return self._runner.model.generates

    @property
    def num_graph_steps(self) -> int:
        return self._runner.num_graph_steps

    def launch(self, plan: StepPlan) -> Pending:
        return self._runner.launch(plan)

    def check(self) -> None:
        pass

    def close(self) -> None:
        runner = self.__dict__.pop("_runner", None)  # None: closed before
        if runner is not None and runner.device.type == "cuda":
            del runner
            torch.cuda.empty_cache()
