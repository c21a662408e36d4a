"""Ranks as processes of this machine. They end with this process, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import msgspec

from quire.engine.errors import RankError
from quire.engine.execution.hardware import Hardware, of_this_machine
from quire.engine.execution.rank import RankSpec
from quire.engine.module_command import module_command
from quire.engine.private_dir import PrivateDirectory

STOP_S = 5.0
# What ranks of one machine say to each other leaves by no wire.
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


class LocalRanks:
    host = "127.0.0.1"

    def __init__(self) -> None:
        self._directory = PrivateDirectory()
        self.address = f"ipc://{self._directory.path}/core.sock"
        self._lifeline_end, self._lifeline = os.pipe()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ends: list[int] = []

    def hardware(self) -> Hardware:
        return of_this_machine()

    def device_index(self, rank: int) -> int:
        return rank

    def start(self, specs: list[RankSpec]) -> list[int]:
        """File descriptors, one a rank, that become readable when it is over."""
        for spec in specs:
            end, held = os.pipe()  # `held` is closed with the rank
            self._ends.append(end)
            try:
                process = subprocess.Popen(
                    [*module_command("quire.engine.execution.rank"), str(self._lifeline_end)], stdin=subprocess.PIPE,
                    pass_fds=[self._lifeline_end, held], env=_LOOPBACK | os.environ)
            finally:
                os.close(held)
            self._processes.append(process)
            assert process.stdin is not None
            with process.stdin:
                process.stdin.write(msgspec.msgpack.encode(spec))
        return self._ends

    def end_of(self, rank: int) -> RankError:
        """Says how a rank that is over ended."""
        process = self._processes[rank]
        code = process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return RankError(f"rank {rank} (process {process.pid}) {how}", killed=code == -signal.SIGKILL)

    def stop(self) -> None:
        os.close(self._lifeline)  # each rank reads its end, and leaves
        deadline = time.monotonic() + STOP_S
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for descriptor in (self._lifeline_end, *self._ends):
            os.close(descriptor)
        self._directory.remove()
