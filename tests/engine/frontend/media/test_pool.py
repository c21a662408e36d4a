"""Processes that hang, die or never start cost one image each, and are replaced."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from quire.engine.errors import OverloadedError
from quire.engine.frontend.media.errors import BadImageError, ImageServiceError
from quire.engine.frontend.media.jobs import Done, Job, Setup
from quire.engine.frontend.media.pixel_files import PixelFiles
from quire.engine.frontend.media.pool import ProcessPool
from quire.engine.module_command import module_command

SCRIPTED = module_command("tests.engine.frontend.media.scripted_process")


def anything(num_bytes: int) -> None:
    """Admits."""


@asynccontextmanager
async def running(num_processes: int = 1, timeout_s: float = 30.0, *arguments: str) -> AsyncIterator[ProcessPool]:
    pool = ProcessPool(Setup("model", 1, {}), num_processes, timeout_s, [*SCRIPTED, *arguments])
    try:
        yield pool
    finally:
        await pool.close()
    assert not [pid for pid in pool.pids if alive(pid)]


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def job(data: bytes, path: Path | str = os.devnull) -> Job:
    return Job(data, None, {}, None, str(path))


async def test_a_process_that_hangs_dies_or_talks_nonsense_is_replaced(tmp_path: Path) -> None:
    async with running(timeout_s=0.5) as pool:
        before = -1
        for data, said in ((b"hangs", "more than 0.5 s"), (b"dies", "died of it"), (b"nonsense", "died of it"),
                           (b"no text", "died of it")):
            with pytest.raises(BadImageError, match=said):
                await pool.run(job(data), anything)
            assert await pool.run(job(b"fine", tmp_path / data.decode()), anything) == Done(b"digest", (1, 2, 2))
            [pid] = pool.pids
            assert pid != before
            before = pid
        os.kill(before, signal.SIGKILL)  # while it has nothing to do
        os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
        assert await pool.run(job(b"fine", tmp_path / "again"), anything)
        assert pool.pids != [before]


async def test_jobs_that_wait_for_a_process_that_dies_get_another(tmp_path: Path) -> None:
    async with running(timeout_s=0.5) as pool:
        jobs = [pool.run(job(data, tmp_path / str(i)), anything)
                for i, data in enumerate([b"dies", b"fine", b"hangs", b"fine", b"dies", b"fine"])]
        found = await asyncio.gather(*jobs, return_exceptions=True)
        assert [type(one) for one in found] == [BadImageError, Done] * 3


async def test_what_is_not_admitted_ends_there_and_the_process_goes_on(tmp_path: Path) -> None:
    def full(num_bytes: int) -> None:
        assert num_bytes == 4
        raise OverloadedError("full", 1.0)

    async with running() as pool:
        with pytest.raises(OverloadedError, match="full"):
            await pool.run(job(b"fine", tmp_path / "1"), full)
        with pytest.raises(OverloadedError, match="--image-memory-bytes"):
            await pool.run(job(b"no room"), anything)
        [pid] = pool.pids
        await pool.run(job(b"fine", tmp_path / "2"), anything)
        assert pool.pids == [pid] and os.listdir(tmp_path) == ["2"]


def test_a_process_whose_end_is_cancelled_leaves_no_connection_open() -> None:
    async def cancel_twice() -> None:
        pool = ProcessPool(Setup("model", 1, {}), 1, 30.0, SCRIPTED)
        began = asyncio.Event()
        hanging = asyncio.create_task(pool.run(job(b"hangs"), anything, began.set))
        await began.wait()
        hanging.cancel()
        while pool.pids:  # until it is being ended
            await asyncio.sleep(0)
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)

    asyncio.run(cancel_twice())
    gc.collect()  # what is open still is told of here, as an error


async def test_every_waiting_job_hears_that_no_process_starts() -> None:
    async with running(2, 30.0, "broken") as pool:
        found = await asyncio.gather(*(pool.run(job(b"fine"), anything) for _ in range(5)), return_exceptions=True)
        assert {(type(one), str(one)) for one in found} == {(ImageServiceError, "as it was told")}
    for command, said in (([sys.executable, "-c", ""], "does not start"), (["/no/such/program"], "cannot be started")):
        pool = ProcessPool(Setup("model", 1, {}), 1, 30.0, command)
        with pytest.raises(ImageServiceError, match=said):
            await pool.run(job(b"fine"), anything)
        await pool.close()


async def test_files_of_a_killed_process_go_with_the_next_that_makes_some() -> None:
    program = ("import asyncio, sys, time\nfrom quire.engine.frontend.media.pixel_files import PixelFiles\n"
               "files = PixelFiles(1000)\nopen(files.directory + '/1', 'w').close()\n"
               "print(files.directory, flush=True)\ntime.sleep(60)")
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    directory = parent.stdout.readline().strip()
    PixelFiles(1000).remove_all()
    assert os.listdir(directory)  # of one that lives
    parent.kill()
    parent.communicate()
    PixelFiles(1000).remove_all()
    assert not os.path.exists(directory)

