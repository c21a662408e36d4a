"""A program that asks a server for /livez over and over, by a new connection each time as the kubelet does, until its
input ends; then it prints the longest time that one answer took, in ms, and how many came.

`beside` runs it: in a process of its own, so that nothing a test does holds it up.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

EVERY_S = 0.01
PATIENCE_S = 30.0
PROBE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass
class Beside:
    """What was seen while the attack went on."""

    longest_ms: float = 0.0
    num_probes: int = 0
    num_failed: int = 0
    peak_mb: float = 0.0  # most memory that the worker had


@contextmanager
def beside(address: tuple[str, int], worker: int) -> Iterator[Beside]:
    """Probe `address` while the block runs, then say what was seen of it and of the process `worker`."""
    Path(f"/proc/{worker}/clear_refs").write_text("5")  # its peak is counted anew
    found = Beside()
    program = subprocess.Popen([sys.executable, "-m", __name__, *map(str, address)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(0.5)
        yield found
    finally:
        seen = json.loads(program.communicate()[0])
        found.longest_ms, found.num_probes, found.num_failed = seen["longest_ms"], seen["probes"], seen["failed"]
        status = Path(f"/proc/{worker}/status").read_text()
        found.peak_mb = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        print(f"probe beside: {found}")


def probe(address: tuple[str, int]) -> bool:
    """Whether the answer was 200."""
    raw = b""
    try:
        with socket.create_connection(address, timeout=PATIENCE_S) as client:
            client.sendall(PROBE)
            while got := client.recv(65536):
                raw += got
    except OSError:
        return False
    return raw.startswith(b"HTTP/1.1 200 ")


def main(address: tuple[str, int]) -> None:
    longest_s, probes, failed = 0.0, 0, 0
    while not select.select([sys.stdin], [], [], EVERY_S)[0]:
        begun = time.perf_counter()
        failed += not probe(address)
        longest_s = max(longest_s, time.perf_counter() - begun)
        probes += 1
    print(json.dumps({"longest_ms": round(longest_s * 1000, 1), "probes": probes, "failed": failed}))


if __name__ == "__main__":
    main((sys.argv[1], int(sys.argv[2])))
