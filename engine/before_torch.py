"""What must be settled in a process before torch is loaded: how OpenMP's threads wait, how many compiled products
oneDNN keeps, and which cuBLAS torch gets."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path

# libgomp spins some 300,000 times before it sleeps. On cores that others use too, each barrier then waits out a time
# slice: a step takes three times as long beside one busy process, and far longer beside a second one that spins. 1000
# halves that, for a tenth of the speed on cores of our own (docs/performance.md). A value in the environment wins.
SPIN_COUNT = "1000"

# oneDNN compiles each product for its number of rows, and keeps 1024 of them: 190 MiB, with SmolLM2, that fill up over
# an hour. These are as many as five shapes of weights need with up to 64 rows, which decodes come back to.
NUM_PRODUCTS = "320"


def settle() -> None:
    """Call it first where an engine, a rank or an `LLM` begins."""
    share_cores()
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", NUM_PRODUCTS)
    load_cublas()


def share_cores() -> None:
    """Spin briefly, unless the environment says how to wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def load_cublas() -> Path | None:
    """Load the cuBLAS of the package nvidia-cublas-cu12, where it is installed; its folder.

    torch for CUDA 12 then gets this one, whatever was put beside it: a library is loaded once by its name
    (libcublas.so.12), which stays the same, with the binary interface, within a major version. A torch for another
    CUDA asks for other names.

    Raises OSError where the package's files cannot be loaded.
    """
    package = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.cublas")
    if not package or not package.submodule_search_locations:
        return None
    folder = Path(next(iter(package.submodule_search_locations)), "lib")
    libraries = [folder / "libcublasLt.so.12", folder / "libcublas.so.12"]  # the second needs the first
    if not all(map(Path.is_file, libraries)):
        return None
    for library in libraries:
        ctypes.CDLL(str(library))
    return folder
