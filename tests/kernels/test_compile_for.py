"""The kernels as the installed Triton compiles them, for GPUs that are not here."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("capability", ["75", "80", "90"])
def test_every_kernel_compiles_and_fits(capability: str) -> None:
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-m", "kernels.bench.compile_for", capability], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr
