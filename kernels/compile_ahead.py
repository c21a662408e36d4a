"""Kernels compiled many at a time, before anybody waits for one: a new machine's first start is mostly that.

Refuses to know which kernels there are: it is given steps that launch them, and where the steps launch one, a thread
has it compiled (or fetched from Triton's cache) and loaded instead. Called once by
`quire.engine.execution.model_runner`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import triton
from torch.overrides import TorchFunctionMode
from triton.runtime.jit import JITFunction

AVAILABLE = hasattr(triton, "AsyncCompileMode")  # not in Triton 3.1
MOST_THREADS = 16  # each holds a compiler's memory, and some of the work takes turns at the interpreter
_ZEROED: dict[Any, Callable[..., torch.Tensor]] = {
    torch.empty: torch.zeros,
    torch.empty_like: torch.zeros_like,
    torch.Tensor.new_empty: torch.Tensor.new_zeros,
}


def kernels_of(steps: Callable[[], object], device: int) -> None:
    """Carry out the steps without their kernels, which are ready when it returns; nothing where Triton cannot.

    What kernels would have written into new tensors is zero; the rest of what the steps do they really do. A kernel
    that does not compile is no error here: its first launch will say so. `device`: where to load; -1: nowhere.
    """
    if not AVAILABLE:
        return
    with _Threads(device) as threads, triton.AsyncCompileMode(threads, ignore_errors=True), _compile_only(), _Zeros():
        steps()


class _Threads(ThreadPoolExecutor):
    """Takes a kernel's compilation, and goes on to what its first launch would do."""

    def __init__(self, device: int) -> None:
        super().__init__(min(MOST_THREADS, len(os.sched_getaffinity(0))), initializer=torch.cuda.set_device,
                         initargs=(device,))

    def submit(self, compile_kernel: Callable[[], Any]) -> Future[Any]:  # type: ignore[override]
        def compile_and_load() -> Any:
            kernel = compile_kernel()
            kernel.run  # noqa: B018  # compiles the launcher's stub, loads the kernel
            return kernel

        return super().submit(compile_and_load)


@contextmanager
def _compile_only() -> Iterator[None]:
    def launcher(self: Any, grid: object) -> Callable[..., None]:
        def call(*args: object, **options: object) -> None:
            self.run(*args, grid=grid, warmup=True, **options)
        return call

    real = JITFunction.__getitem__
    JITFunction.__getitem__ = launcher
    try:
        yield
    finally:
        JITFunction.__getitem__ = real


class _Zeros(TorchFunctionMode):
    """What nobody has written may be an index to who reads it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _ZEROED.get(func, func)(*args, **(kwargs or {}))
