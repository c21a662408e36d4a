"""A process of test_compile_ahead.py's: compiles some kernels for a GPU that is not here, and says when it did what."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import Any

import torch
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from quire.kernels import compile_ahead, norms, product, sampling
from quire.kernels.bench import compile_for


def main(how: str) -> None:
    compile_for.pretend(90)
    fetched: dict[str, bool] = {}  # by cubin's hash
    knobs.compilation.listener = lambda *, metadata, cache_hit, **rest: fetched.update({metadata["name"]: cache_hit})

    def load(name: str, *rest: object) -> tuple[int, ...]:
        if how == "with one that does not load" and name == "_best":
            raise RuntimeError(f"{name} does not load")
        when = "late" if threading.current_thread() is threading.main_thread() else "ahead"
        done = "fetched" if fetched[name] else "compiled"
        sys.stdout.write(f"{when}, {done} and loaded {name}\n")  # in one, as several threads write
        return 1, 1, 0, 0, 1024  # module, function, registers, spills, threads

    driver.active.launcher_cls = lambda source, metadata: lambda *args: None
    driver.active.utils = SimpleNamespace(load_binary=load,
                                          get_device_properties=lambda device: {"max_shared_mem": 1 << 20})
    JITFunction.__getitem__ = compile_and_load
    if how != "one by one":
        compile_ahead.kernels_of(steps, -1)
    try:
        steps()
    except RuntimeError as error:
        print("failed:", error)


def compile_and_load(kernel: Any, grid: object) -> Any:
    """All of a launch that can be done here."""
    return lambda *args, **options: kernel.run(*args, grid=grid, warmup=True, **options).run


def steps() -> None:
    half, single, ids = (torch.zeros(6, 2048, dtype=d) for d in (torch.bfloat16, torch.float32, torch.int32))
    for rows in (1, 2, 6, 6):
        norms.rms_norm(half[:rows], half[0], 1e-5)
        norms.add_rms_norm(half[:rows], half[:rows], half[0], 1e-5)
        product.skinny_product(half[:rows], torch.zeros(2048, 2048, dtype=torch.bfloat16), None)
    for filtered in (False, True):
        sampling.sample(half, single[:, 0], ids[:, 0], single[:, 0], single[:, 0], ids[:, 0].long(), ids[:, 0],
                        filtered=filtered)


if __name__ == "__main__":
    main(sys.argv[1])
