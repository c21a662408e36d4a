"""The kernels as the installed Triton compiles them, for GPUs that are not here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("capability", ["75", "80", "90"])
def test_every_kernel_compiles_and_fits(capability: str) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "quire.kernels.bench.compile_for", capability], capture_output=True,
                          text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
