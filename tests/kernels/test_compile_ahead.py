"""Compilation ahead of the first launch, by the installed Triton, for a GPU that is not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("compile_some_kernels.py")


def compile_some(how: str, cache: Path) -> list[str]:
    """What the program says, line by line."""
    outside_interpreter = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, PROGRAM, how], capture_output=True, text=True,
                          env={**outside_interpreter, "TRITON_CACHE_DIR": str(cache)})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def binaries(cache: Path) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in cache.rglob("*.cubin")}


@pytest.fixture(autouse=True)
def _able() -> None:
    triton = pytest.importorskip("triton")
    if not hasattr(triton, "AsyncCompileMode"):
        pytest.skip("this Triton compiles one kernel after the other")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ahead_gives_the_same_binaries_as_one_by_one(tmp_path: Path) -> None:
    compile_some("ahead", tmp_path / "ahead")
    compile_some("one by one", tmp_path / "one by one")
    found = binaries(tmp_path / "ahead")
    assert len(found) > 5
    assert found == binaries(tmp_path / "one by one")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_launches_after_it_compile_and_load_nothing(tmp_path: Path) -> None:
    first = compile_some("ahead", tmp_path)
    assert [line for line in first if line.startswith("late")] == []
    assert [line for line in first if line.startswith("ahead, compiled and loaded")] != []
    again = compile_some("ahead", tmp_path)
    assert [line for line in again if not line.startswith("ahead, fetched and loaded")] == []
    assert len(again) == len(first)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_kernel_that_cannot_be_loaded_fails_at_its_launch_only(tmp_path: Path) -> None:
    said = compile_some("with one that does not load", tmp_path)
    assert [line for line in said if line.startswith("failed")] == ["failed: _best does not load"]


def test_what_kernels_would_have_written_is_zero() -> None:
    from quire.kernels import compile_ahead

    made: list[torch.Tensor] = []

    def steps() -> None:
        made.append(torch.empty(9, dtype=torch.int32))
        made.append(torch.empty_like(made[0]))
        made.append(made[0].new_empty(9))

    torch.use_deterministic_algorithms(True)  # fills new memory with large numbers
    try:
        compile_ahead.kernels_of(steps, -1)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [tensor.any().item() for tensor in made] == [False] * 3
