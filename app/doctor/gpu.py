"""GPUs as the driver's own tool tells of them, without loading torch, and the compiler that Triton needs for them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from quire.app.doctor.finding import Finding, fail, gib, ok, warn
from quire.engine.config import EngineArgs

DRIVER = Path("/proc/driver/nvidia/version")
QUERY_S = 30.0  # a GPU without persistence mode is woken up first


@dataclass(frozen=True)
class Gpu:
    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    driver: str


def find_gpus() -> tuple[list[Gpu], str]:
    """Those that this process may use, and why there are none, where the driver is there and yet none was found."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [], f"{DRIVER} is there, but no nvidia-smi" if DRIVER.exists() else ""
    try:
        told = subprocess.run(
            [tool, "--query-gpu=index,uuid,name,memory.total,memory.free,driver_version",
             "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=QUERY_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi: {error}"
    if told.returncode != 0:
        return [], f"nvidia-smi: {(told.stdout + told.stderr).strip()[:200]}"
    return visible(parse(told.stdout), os.environ.get("CUDA_VISIBLE_DEVICES")), ""


def parse(table: str) -> list[Gpu]:
    gpus = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 6 and cells[3].isdigit() and cells[4].isdigit():
            gpus.append(Gpu(int(cells[0]), cells[1], cells[2], int(cells[3]) * 2**20, int(cells[4]) * 2**20, cells[5]))
    return gpus


def visible(gpus: list[Gpu], wanted: str | None) -> list[Gpu]:
    """In the order of CUDA_VISIBLE_DEVICES: numbers or beginnings of UUIDs, up to the first that is neither."""
    if wanted is None:
        return gpus
    chosen: list[Gpu] = []
    for word in wanted.split(","):
        word = word.strip()
        match = [gpu for gpu in gpus if str(gpu.index) == word or (word.startswith("GPU-") and
                                                                   gpu.uuid.startswith(word))]
        if not match:
            break
        chosen += match
    return chosen


def gpus_needed(args: EngineArgs) -> int:
    """On this machine; what a Ray cluster has beside, nobody asked."""
    return 1 if args.distributed_executor_backend == "ray" else args.data_parallel_size * args.num_ranks


def check_gpus(gpus: list[Gpu], trouble: str, device: str, needed: int = 1) -> list[Finding]:
    """`device` is --device, `needed` what all engines take together."""
    advice = ("install the NVIDIA driver and see that nvidia-smi works here; in a container, start it with its GPUs "
              "(--gpus all); see that CUDA_VISIBLE_DEVICES names one")
    if trouble:
        return [(warn if device == "cpu" else fail)("GPU", trouble, advice)]
    if not gpus:
        if device == "cuda":
            return [fail("GPU", "none found, and --device is cuda", advice)]
        return [ok("GPU", "none; the CPU will be used")]
    if device == "cpu":
        return [ok("GPU", f"{len(gpus)} found, not used (--device cpu)")]
    found = [ok(f"GPU {gpu.index}", f"{gpu.name}, {gib(gpu.free_bytes)} of {gib(gpu.total_bytes)} free, "
                                    f"driver {gpu.driver}") for gpu in gpus]
    if len(gpus) < needed:
        found.append(fail("GPUs", f"{len(gpus)} found, and the engines need {needed} (--data-parallel-size times "
                          "--tensor-parallel-size times --pipeline-parallel-size)",
                          "ask for fewer, or see that CUDA_VISIBLE_DEVICES and the container show all of them"))
    return [*found, check_compiler(os.environ.get("CC"))]


def check_compiler(chosen: str | None) -> Finding:
    names = [chosen] if chosen else ["cc", "gcc", "clang"]
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        return fail("C compiler", f"no {' or '.join(names)} here; Triton builds its launchers with one",
                    "install gcc and the C library's headers, or name a compiler with CC")
    return ok("C compiler", path)
