"""From arguments to a running core: finds the model, settles the configuration, starts the ranks, loads.

Everything behind it takes what it is given, so that a scripted executor can stand in for the ranks. Called by `LLM` and
by the engine's process.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from quire.engine.config import EngineArgs
from quire.engine.core import EngineCore
from quire.engine.division import require_divisible
from quire.engine.execution.device import settle
from quire.engine.execution.executor import Executor, InProcessExecutor
from quire.engine.execution.freed_memory import return_freed_memory
from quire.engine.execution.hardware import of_this_machine
from quire.engine.execution.placement import placement
from quire.engine.execution.rank_group import RankGroup
from quire.engine.memory_need import require_host_memory
from quire.engine.weights.locate import resolve_model


def assemble(args: EngineArgs, progress: Callable[[str, float], None], advances: Callable[[], None] = lambda: None, *,
             offline: bool = False) -> EngineCore:
    """`offline`: nobody waits for single tokens; steps may be longer, and the queue has no limits.

    `advances` is called within each step that may be long, those on a CPU, as often as it gets on: at each layer, by
    the thread that called `step`.

    Raises:
        ConfigError: the configuration does not fit the model or the device.
        WeightError: the checkpoint does not fit its model.
    """
    began = time.monotonic()
    args.checked()
    model = resolve_model(args)
    require_divisible(args, model)  # before anybody waits for devices
    ranks = placement(args, progress)
    try:
        config = settle(args, model, of_this_machine() if ranks is None else ranks.hardware(), offline=offline)
        if config.device == "cpu":
            require_host_memory(args, model, config.dtype)
    except BaseException:
        if ranks is not None:
            ranks.stop()
        raise
    executor: Executor = (InProcessExecutor(config, progress, advances) if ranks is None
                          else RankGroup(config, ranks, progress, advances))
    return_freed_memory()
    return EngineCore(config, executor, offline=offline, load_s=time.monotonic() - began)
