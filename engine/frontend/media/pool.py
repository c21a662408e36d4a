"""Processes that make pixel values of images: so many at a time, each job within a time, and one that hangs or dies is
replaced while its job alone fails.

Belongs to one event loop, on which nothing is ever computed. Processes are started anew rather than forked, since this
process has threads. Called by `loader`; knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Sequence

import msgspec
import structlog

from quire.engine.frontend.media.errors import BadImageError, ImageServiceError, no_room
from quire.engine.frontend.media.jobs import LENGTH, Answer, Broken, Done, Go, Hello, Job, Refused, Setup, Size
from quire.engine.messages import UNREADABLE
from quire.engine.module_command import module_command

log = structlog.get_logger(__name__)

START_TIMEOUT_S = 120.0  # to import transformers, on a machine that is busy loading a model
_COMMAND = tuple(module_command("quire.engine.frontend.media.process"))
# Nothing else of the environment is a decoder's business.
_PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH", "HOME", "LANG",
              "LC_ALL", "TMPDIR")
_OWN = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONSAFEPATH": "1",
        "TRANSFORMERS_VERBOSITY": "error"}
_MOST_ANSWER_BYTES = 2**16
_encode = msgspec.msgpack.encode
_answer: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


class ProcessPool:
    """Args:
        num_processes: at most; another is started when a job finds none free.
        timeout_s: for a job, from when a process has it.
    """

    def __init__(self, setup: Setup, num_processes: int, timeout_s: float, command: Sequence[str] = _COMMAND) -> None:
        self._setup = setup
        self._num_processes = num_processes
        self._timeout_s = timeout_s
        self._command = command
        self._all: set[_Process] = set()
        # Processes without a job, and why one could not be started, for the job that waits for it.
        self._free: asyncio.Queue[_Process | ImageServiceError] = asyncio.Queue()
        self._starting: set[asyncio.Task[None]] = set()
        self._num_waiting = 0  # jobs that have no process yet

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._all]

    def warm_up(self) -> None:
        """Begin to start a process, so that the first image does not wait for it."""
        if not self._all and not self._starting:
            self._start_one()

    async def run(self, job: Job, admit: Callable[[int], None], begin: Callable[[], None] = lambda: None) -> Done:
        """`admit` is told how many bytes the file will have, and raises what ends the job. `begin` is called when a
        process has the job: to cancel it from then on costs that process.

        Raises:
            BadImageError: this image cannot be processed.
            ImageServiceError: no image can be.
            OverloadedError: there is no room for the file.
        """
        process = await self._taken()
        begin()
        try:
            return await asyncio.wait_for(process.run(job, admit), self._timeout_s)
        except asyncio.TimeoutError:
            log.warning("image process hangs, and is replaced", pid=process.pid, timeout_s=self._timeout_s)
            raise BadImageError(f"it took more than {self._timeout_s:g} s to process") from None
        except (OSError, EOFError, *UNREADABLE):
            log.warning("image process died, and is replaced", pid=process.pid)
            raise BadImageError("the process that decoded it died of it") from None
        finally:
            if process.is_free:
                self._free.put_nowait(process)
            else:
                await self._end(process)
                self._start_for_waiting()

    async def close(self) -> None:
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        await asyncio.gather(*map(self._end, self._all), return_exceptions=True)

    async def _taken(self) -> _Process:
        """One that is free, as soon as there is one."""
        self._num_waiting += 1
        try:
            while True:
                if self._free.empty():
                    self._start_for_waiting()
                process = await self._free.get()
                if isinstance(process, ImageServiceError):
                    raise process
                if process.is_alive:
                    return process
                await self._end(process)
        finally:
            self._num_waiting -= 1

    def _start_for_waiting(self) -> None:
        if self._num_waiting > len(self._starting) and len(self._all) < self._num_processes:
            self._start_one()

    def _start_one(self) -> None:
        try:
            process = _Process(self._command)
        except OSError as error:  # too many processes, or too little memory
            self._tell_waiting(ImageServiceError(f"the process for images cannot be started: {error.strerror}"))
            return
        self._all.add(process)
        task = asyncio.create_task(self._start(process))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _start(self, process: _Process) -> None:
        try:
            await asyncio.wait_for(process.start(self._setup), START_TIMEOUT_S)
        except (OSError, EOFError, asyncio.TimeoutError):
            await self._end(process)
            self._tell_waiting(ImageServiceError("the process for images does not start"))
        except ImageServiceError as error:
            await self._end(process)
            self._tell_waiting(error)
        else:
            self._free.put_nowait(process)

    def _tell_waiting(self, error: ImageServiceError) -> None:
        log.error("images cannot be processed", reason=str(error))
        for _ in range(self._num_waiting):
            self._free.put_nowait(error)

    async def _end(self, process: _Process) -> None:
        self._all.discard(process)
        await process.end()


class _Process:
    def __init__(self, command: Sequence[str]) -> None:
        ours, its = socket.socketpair()
        self._end_of_ours = ours
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        try:
            with its:
                self._popen = subprocess.Popen(command, stdin=its.fileno(), stdout=subprocess.DEVNULL,
                                               env=environment | _OWN, start_new_session=True)
        except OSError:
            ours.close()
            raise
        self.is_free = False  # it has no job, and can take one
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_alive(self) -> bool:
        return self._popen.poll() is None

    async def start(self, setup: Setup) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._end_of_ours)
        await self._say(_encode(setup))
        answer = await self._hear()
        if isinstance(answer, Broken):
            raise ImageServiceError(answer.reason)
        if not isinstance(answer, Hello):
            raise EOFError
        self.is_free = True

    async def run(self, job: Job, admit: Callable[[int], None]) -> Done:
        self.is_free = False
        await self._say(_encode(job))
        answer = await self._hear()
        if isinstance(answer, Size):
            try:
                admit(answer.num_bytes)
            except Exception:
                await self._say(_encode(Go(False)))
                await self._hear()
                self.is_free = True
                raise
            await self._say(_encode(Go(True)))
            answer = await self._hear()
        if isinstance(answer, Refused):
            self.is_free = True
            if answer.is_full:
                raise no_room()
            raise BadImageError(answer.reason)
        if not isinstance(answer, Done):
            raise EOFError
        self.is_free = True
        return answer

    async def end(self) -> None:
        self.is_free = False
        with contextlib.suppress(ProcessLookupError):
            self._popen.kill()
        if self._writer is not None:  # before the wait, which may be cancelled
            self._writer.transport.abort()
        else:
            self._end_of_ours.close()
        await asyncio.get_running_loop().run_in_executor(None, self._popen.wait)

    async def _say(self, frame: bytes) -> None:
        assert self._writer is not None
        self._writer.write(LENGTH.pack(len(frame)))
        self._writer.write(frame)
        await self._writer.drain()

    async def _hear(self) -> Answer:
        assert self._reader is not None
        length = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))[0]
        if length > _MOST_ANSWER_BYTES:  # whatever took the process over
            raise EOFError
        return _answer.decode(await self._reader.readexactly(length))
