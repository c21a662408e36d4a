"""Python and the packages that matter, as installed; nothing is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import product

from quire.app.doctor.finding import Finding, fail, ok, warn
from quire.app.doctor.gpu import Gpu

TESTED_PYTHON = ((3, 10), (3, 13))
LEAST_TORCH = (2, 5, 1)
# CUDA's major version -> the oldest driver that runs its programs.
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}


def check_versions(gpus: list[Gpu], installed: Callable[[str], str] = version) -> list[Finding]:
    return [check_python(sys.version_info[:3]), *check_torch(gpus, installed)]


def check_python(found: tuple[int, ...]) -> Finding:
    says, (first, last) = ".".join(map(str, found)), TESTED_PYTHON
    if first <= found[:2] <= last:
        return ok("Python", says)
    return warn("Python", f"{says} is not one that is tested",
                f"use {first[0]}.{first[1]} to {last[0]}.{last[1]}")


def check_torch(gpus: list[Gpu], installed: Callable[[str], str]) -> list[Finding]:
    torch = _installed("torch", installed)
    if not torch:
        return [fail("torch", "not installed", f"pip install 'torch>={'.'.join(map(str, LEAST_TORCH))}', in the Python "
                     "that runs quire; or make install in a checkout")]
    if _numbers(torch) < LEAST_TORCH:
        return [fail("torch", torch, f"install {'.'.join(map(str, LEAST_TORCH))} or newer")]
    if not gpus:
        return [ok("torch", torch)]
    if torch.endswith("+cpu"):
        return [fail("torch", f"{torch} cannot use the GPU", "install a CUDA build of torch, or say --device cpu")]
    found = [ok("torch", torch)]
    triton = _installed("triton", installed)
    found.append(ok("triton", triton) if triton else
                 fail("triton", "not installed", "pip install 'triton>=3.1': the kernels for GPUs are written in it"))
    cublas = _installed("nvidia-cublas-cu12", installed)
    found += [ok("cuBLAS", f"{cublas}, in place of torch's own")] if cublas else []
    cuda = _cuda_major(torch, installed)
    driver, least = _numbers(gpus[0].driver)[:1], LEAST_DRIVER.get(cuda, 0)
    if driver < (least,):
        found.append(fail("driver", f"{gpus[0].driver} is too old for torch {torch} (CUDA {cuda})",
                          f"install driver {least} or newer, or a torch for an older CUDA"))
    return found


def _cuda_major(torch: str, installed: Callable[[str], str]) -> int:
    """Of the CUDA that torch was built for; 0 where nobody says."""
    build = torch.partition("+cu")[2]
    if build[:2].isdigit():
        return int(build[:2])
    # PyPI's torch bears no such mark, and brings CUDA as packages; from 13 on they have no number in their names. The
    # image's torch brings none, and has cuBLAS from a package.
    for package, major in product(("nvidia-cuda-runtime", "nvidia-cublas"), (11, 12)):
        if _installed(f"{package}-cu{major}", installed):
            return major
    return (*_numbers(_installed("nvidia-cuda-runtime", installed)), 0)[0]


def _installed(package: str, installed: Callable[[str], str]) -> str:
    try:
        return installed(package)
    except PackageNotFoundError:
        return ""


def _numbers(text: str) -> tuple[int, ...]:
    """2.5.1+cu121 -> (2, 5, 1); 2.8.0a0 -> (2, 8)."""
    found = []
    for part in text.partition("+")[0].split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)
