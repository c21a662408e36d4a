"""What every process of a server under test loads first, where PYTHONPATH leads here: faults that signals cannot be.

A step of the engine ends as the file named by the variable FAULT_ORDER says, which is then gone:
  raise: an exception; memory: torch.OutOfMemoryError; hang: it never ends; slow: it takes SLOW_STEP_S more.
A request whose prompt has FAULTY_TEXT_TOKEN has an exception where its text is made.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

FAULTY_TEXT_TOKEN = 31339
SLOW_STEP_S = 2.0


def obey_orders(executor: ModuleType) -> None:
    launch = executor.InProcessExecutor.launch

    def launch_or_fail(self: Any, plan: Any) -> Any:
        order = _order()
        if order == "raise":
            raise RuntimeError("a step fails (pretended)")
        if order == "memory":
            raise executor.torch.OutOfMemoryError("CUDA out of memory (pretended)")
        if order:
            time.sleep({"hang": 3600.0, "slow": SLOW_STEP_S}[order])
        return launch(self, plan)

    executor.InProcessExecutor.launch = launch_or_fail


def _order() -> str:
    file = Path(os.environ["FAULT_ORDER"])
    try:
        order = file.read_text()
        file.unlink()
    except FileNotFoundError:
        return ""
    return order


def fail_in_some_texts(generation: ModuleType) -> None:
    init, push = generation.Generation.__init__, generation.Generation.push

    def remember(self: Any, params: Any, prompt_token_ids: list[int], *others: Any) -> None:
        init(self, params, prompt_token_ids, *others)
        self.is_faulty = FAULTY_TEXT_TOKEN in prompt_token_ids

    def push_or_fail(self: Any, index: int, delta: Any) -> Any:
        if self.is_faulty:
            raise RuntimeError("no text can be made of this (pretended)")
        return push(self, index, delta)

    generation.Generation.__init__, generation.Generation.push = remember, push_or_fail


class ChangeOnImport(MetaPathFinder):
    def __init__(self, changes: dict[str, Callable[[ModuleType], None]]) -> None:
        self._changes = changes

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        change = self._changes.pop(name, None)
        spec = None if change is None else importlib.util.find_spec(name)
        if spec is None or spec.loader is None or change is None:
            return None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            change(module)

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


if "FAULT_ORDER" in os.environ:
    sys.meta_path.insert(0, ChangeOnImport({"quire.engine.execution.executor": obey_orders,
                                            "quire.engine.frontend.generation": fail_in_some_texts}))
