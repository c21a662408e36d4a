"""Engine processes beside a Python program, ending with it. Started by `AsyncLLMEngine.from_engine_args`."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial

import msgspec

from quire.engine.config import EngineArgs
from quire.engine.errors import EngineDeadError
from quire.engine.frontend.shares import addresses, environments
from quire.engine.module_command import module_command
from quire.engine.oom_kills import OomKills
from quire.engine.private_dir import PrivateDirectory

STOP_S = 10.0


class EngineProcess:
    """Started on construction; several with --data-parallel-size. `addresses` is where they will listen."""

    def __init__(self, args: EngineArgs) -> None:
        """Raises ConfigError where there are too few GPUs."""
        own_environments = environments(args, os.environ)
        self._directory = PrivateDirectory()
        self.addresses = addresses(self._directory.path, args.data_parallel_size)
        read_end, self._lifeline = os.pipe()
        self._oom_kills = OomKills()
        self._processes = [
            subprocess.Popen([*module_command("quire.engine"), "--address", address, "--lifeline", str(read_end),
                              "--args", msgspec.json.encode(args).decode()],
                             env=os.environ | environment, pass_fds=[read_end], start_new_session=True)
            for address, environment in zip(self.addresses, own_environments)]
        os.close(read_end)

    def watch(self, on_end: Callable[[int, EngineDeadError, bool], None]) -> None:
        """Calls `on_end`, in another thread, when a process ends: with its place, what its end means to requests, and
        whether it was killed from outside."""
        for place, process in enumerate(self._processes):
            # A daemon: asyncio.run() and the interpreter would wait for any other thread, and this one waits for them.
            threading.Thread(target=_wait, args=(process, self._oom_kills, partial(on_end, place)), name="engine-watch",
                             daemon=True).start()

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        os.close(self._lifeline)
        self._directory.remove()


def _wait(process: subprocess.Popen[bytes], kills: OomKills, on_end: Callable[[EngineDeadError, bool], None]) -> None:
    code = process.wait()
    killed = code == -signal.SIGKILL
    how = f"was {kills.cause(code)} (SIGKILL)" if killed else f"ended with exit code {code}; its log says why"
    on_end(EngineDeadError(f"The engine process {how}."), killed)
