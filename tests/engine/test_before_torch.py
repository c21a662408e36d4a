"""Which cuBLAS a process gets, with small libraries of the same names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARIES = ("libcublasLt.so.12", "libcublas.so.12")
# What torch's libraries do: ask for it by its name.
ASK = """
import ctypes
from quire.engine.before_torch import load_cublas
print(load_cublas())
print(ctypes.CDLL("libcublas.so.12").which())
"""


def library(path: Path, which: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-x", "c", "-", "-o", str(path)], check=True,
                   input=f"int which(void) {{ return {which}; }}", text=True)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_packages_cublas_goes_before_the_one_beside_torch(tmp_path: Path) -> None:
    package, beside = tmp_path / "site/nvidia/cublas", tmp_path / "beside"
    for name in LIBRARIES:
        library(package / "lib" / name, 2)
        library(beside / name, 1)
    (package / "__init__.py").touch()

    def ask(*paths: Path) -> list[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "LD_LIBRARY_PATH": str(beside)}
        return subprocess.run([sys.executable, "-c", ASK], env=environment, check=True, capture_output=True,
                              text=True).stdout.split()

    tree = Path(__file__).parents[2]
    assert ask(tree) == ["None", "1"]
    assert ask(tmp_path / "site", tree) == [str(package / "lib"), "2"]
    (package / "lib" / LIBRARIES[0]).unlink()
    assert ask(tmp_path / "site", tree) == ["None", "1"]
