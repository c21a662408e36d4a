"""The process that sees to the model's files (`quire.app.model_files`) as the launcher, its parent, sees it."""

from __future__ import annotations

import contextlib
import os
import subprocess

import msgspec

from quire.app.fetch_state import FetchState
from quire.app.settings import ServeSettings
from quire.engine.errors import ConfigError, FetchError, PassingError
from quire.engine.exit_codes import EXIT_CONFIG
from quire.engine.module_command import module_command

STOP_S = 1.0


class ModelChild:
    """Started on construction. Its state file goes away when the files are known to be here, and is what HTTP workers
    wait for."""

    def __init__(self, settings: ServeSettings, state_file: str, environment: dict[str, str], lifeline: int) -> None:
        """Raises OSError where the system gives no process."""
        self._state_file = state_file
        FetchState().save(state_file)
        self._process = subprocess.Popen(
            [*module_command("quire.app.model_files"), "--args", msgspec.json.encode(settings.engine).decode(),
             "--state", state_file, "--lifeline", str(lifeline), "--log-level", settings.log_level],
            env=environment, pass_fds=[lifeline], stdin=subprocess.DEVNULL, start_new_session=True)
        self.error: ConfigError | None = None  # once it ended: why the model cannot be served

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def state(self) -> FetchState:
        return FetchState.load(self._state_file)

    def ended(self) -> bool:
        code = self._process.poll()
        if code is None:
            return False
        if code == 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._state_file)
        elif problems := self.state.problems:
            self.error = ConfigError(problems) if code == EXIT_CONFIG else FetchError(problems)
        else:  # killed, for memory perhaps, or broken: its log has the traceback
            self.error = PassingError(f"--model: the process that reads the model's files ended with status {code}")
        return True

    def stop(self) -> None:
        """It gets a moment to delete what it has half fetched."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
