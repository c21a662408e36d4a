"""Every test here runs on both implementations: the reference, and Triton in its interpreter on CPU tensors."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pytest
import torch

Kernels = Callable[[str], ModuleType]


@pytest.fixture(params=["reference", "triton"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """stem -> module. The whole test run sets TRITON_INTERPRET (tests/conftest.py): Triton reads it when imported."""
    if request.param == "reference":
        return lambda stem: importlib.import_module(f"quire.kernels.reference.{stem}")
    from triton.runtime.interpreter import InterpretedFunction

    from quire.kernels import norms
    if not isinstance(norms._rms_norm, InterpretedFunction):
        pytest.skip("Triton compiles on this machine: kernels/bench/check_gpu.py checks it")
    return lambda stem: importlib.import_module(f"quire.kernels.{stem}")


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    # The interpreter computes with numpy, which warns of the overflows that the kernels mean.
    with np.errstate(all="ignore"):
        yield
