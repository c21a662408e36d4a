"""The machine without its GPUs: shared memory, file limits, clock."""

from __future__ import annotations

import os
import resource
import time

from quire.app.doctor.finding import Finding, fail, gib, ok, warn
from quire.app.open_files import attainable

FILES_ADVISED = 65536  # each stream is a descriptor, in the HTTP worker and in the proxy's connection to it
FILES_NEEDED = 1024
SHM_ONE_GPU = 64 * 2**20
SHM_SEVERAL_GPUS = 2**30
# The clock dates log lines and ends keys and certificates. No machine that runs this was made before.
EARLIEST = 1735689600  # 2025-01-01


def check_host(num_gpus: int) -> list[Finding]:
    return [check_files(attainable(resource.getrlimit(resource.RLIMIT_NOFILE)[1])), check_shared_memory(num_gpus),
            check_clock(time.time())]


def check_files(limit: int) -> Finding:
    says = f"{limit} open files"
    advice = (f"raise the hard limit to {FILES_ADVISED}: ulimit -Hn, LimitNOFILE= of a systemd unit, or --ulimit "
              "nofile of a container; each connection takes one")
    if limit < FILES_NEEDED:
        return fail("file limit", says, advice)
    return warn("file limit", says, advice) if limit < FILES_ADVISED else ok("file limit", says)


def check_shared_memory(num_gpus: int, path: str = "/dev/shm") -> Finding:
    needed = SHM_SEVERAL_GPUS if num_gpus > 1 else SHM_ONE_GPU
    advice = "mount a tmpfs there: --shm-size of a container, an emptyDir with medium Memory of a pod"
    try:
        found = os.statvfs(path)
    except OSError as error:
        return warn("shared memory", f"{path}: {error.strerror}", advice)
    size = found.f_blocks * found.f_frsize
    says = f"{path} has {gib(size)}"
    if size >= needed:
        return ok("shared memory", says)
    return warn("shared memory", f"{says}, less than the {gib(needed)} that {max(1, num_gpus)} GPU(s) want", advice)


def check_clock(now: float) -> Finding:
    says = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < EARLIEST:
        return fail("clock", f"it is {says}, they say", "set the clock; keys and certificates end by it")
    return ok("clock", says)
