"""An engine process beside a Python program, ending with it. Started by `AsyncLLMEngine.from_engine_args`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

import msgspec

from engine.config import EngineArgs
from engine.errors import EngineDeadError

STOP_S = 10.0


class EngineProcess:
    """Started on construction. `address` is where it will listen."""

    def __init__(self, args: EngineArgs) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="quire-")
        self.address = f"ipc://{self._directory.name}/engine.sock"
        read_end, self._lifeline = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine", "--address", self.address, "--lifeline", str(read_end),
             "--args", msgspec.json.encode(args).decode()],
            pass_fds=[read_end], start_new_session=True)
        os.close(read_end)

    def watch(self, on_end: Callable[[EngineDeadError], None]) -> None:
        """Calls `on_end`, in another thread, when the process ends: with what its end means to requests."""
        # A daemon: asyncio.run() and the interpreter would wait for any other thread, and this one waits for them.
        threading.Thread(target=self._wait, args=(on_end,), name="engine-watch", daemon=True).start()

    def _wait(self, on_end: Callable[[EngineDeadError], None]) -> None:
        code = self._process.wait()
        on_end(EngineDeadError(f"The engine process ended with exit code {code}; its log says why."))

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._lifeline)
        self._directory.cleanup()
