"""Standard error that is not read, in processes of their own, as a server has it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quire.app.telemetry.audit import AuditError, AuditLog

PIPE_BYTES = 4096  # the least that a pipe may hold
PRELUDE = "import os, sys, time; from quire.engine.stderr import *; take_over();"


def small_pipe() -> tuple[int, int]:
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return read_end, write_end


def start(program: str, stderr: int, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PRELUDE + program], stderr=stderr, stdout=stdout)


def read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


def test_a_pipe_that_nobody_empties_holds_nobody_up_and_what_was_dropped_is_told() -> None:
    read_end, write_end = small_pipe()
    child = start("""
began = time.monotonic()
for number in range(40_000): sys.stderr.write('{"event": "line", "number": %d, "more": "%s"}\\n' % (number, 'x' * 60))
took = time.monotonic() - began
print(took, stderr.num_dropped, flush=True)
""", write_end, subprocess.PIPE)
    os.close(write_end)
    assert child.stdout is not None
    took, dropped = child.stdout.readline().split()
    assert float(took) < 5 and int(dropped) > 10_000
    lines = [json.loads(line) for line in read_all(read_end).splitlines()]
    child.communicate(timeout=10)
    told = [line for line in lines if line["event"] == "log lines dropped"]
    written = [line["number"] for line in lines if line["event"] == "line"]
    assert written == sorted(written), "in order"
    assert sum(line["dropped"] for line in told) == int(dropped) == 40_000 - len(written)


@pytest.mark.parametrize("end", ["raise ValueError('the end')", "import warnings; warnings.warn('the end')",
                                 "import logging; logging.error('the end')"])
def test_no_error_or_warning_waits_for_a_reader(end: str) -> None:
    read_end, write_end = small_pipe()
    os.write(write_end, b"x" * PIPE_BYTES)
    child = start(end, write_end)
    os.close(write_end)
    child.wait(10)
    os.close(read_end)


def test_a_fault_writes_its_stacks_without_waiting_and_leaves_the_shared_pipe_as_it_was() -> None:
    read_end, write_end = small_pipe()
    fault = "dump_stacks_on_faults(); os.kill(os.getpid(), 6)"
    child = start(fault, write_end)
    assert child.wait(10) == -signal.SIGABRT
    assert os.get_blocking(write_end)
    assert b"most recent call first" in os.read(read_end, PIPE_BYTES)
    os.write(write_end, b"x" * PIPE_BYTES)
    assert start(fault, write_end).wait(10) == -signal.SIGABRT
    os.close(read_end)
    os.close(write_end)


def test_the_end_of_a_process_loses_no_line_though_its_reader_is_slow() -> None:
    read_end, write_end = small_pipe()
    child = start("[sys.stderr.write(f'{number}\\n') for number in range(20_000)]; raise SystemExit(3)", write_end)
    os.close(write_end)
    time.sleep(0.3)
    assert read_all(read_end).split() == [str(number).encode() for number in range(20_000)]
    assert child.wait(10) == 3


def test_a_file_has_each_line_at_once(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as file:
        child = start("sys.stderr.write('last words\\n'); os.kill(os.getpid(), 9)", file.fileno())
    assert child.wait(10) == -signal.SIGKILL
    assert (tmp_path / "log").read_text() == "last words\n"


def test_what_a_full_disk_did_not_take_is_counted_and_told_later(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PRELUDE + f"""
os.dup2(os.open('/dev/full', os.O_WRONLY), 2)
stderr._never_blocks = lambda: True
sys.stderr.write('lost\\nlost too\\n')
os.dup2(os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT), 2)
sys.stderr.write('kept\\n')
print(stderr.num_dropped)
"""], capture_output=True, check=True)
    told, kept = (tmp_path / "log").read_text().splitlines()
    assert (json.loads(told)["dropped"], kept, done.stdout) == (2, "kept", b"2\n")


def test_a_closed_standard_error_hurts_nobody() -> None:
    child = start("os.close(2); sys.stderr.write('to nobody\\n'); print('served', flush=True)", subprocess.DEVNULL,
                  subprocess.PIPE)
    assert child.communicate(timeout=10)[0] == b"served\n"
    assert child.returncode == 0


def test_processes_that_share_a_pipe_write_whole_lines_and_a_forked_child_repeats_none() -> None:
    read_end, write_end = os.pipe()
    child = start("""
sys.stderr.write('parent\\n')
child = os.fork()
grandchild = os.fork()
for number in range(300): print(os.getpid(), number, 'y' * 3000, file=sys.stderr)
if grandchild: os.waitpid(grandchild, 0)
if child and grandchild: os.waitpid(child, 0)
""", write_end)
    os.close(write_end)
    lines = read_all(read_end).decode().splitlines()
    assert child.wait(10) == 0
    assert lines.count("parent") == 1
    assert sorted({len(line.split()[2]) for line in lines if line != "parent"}) == [3000]
    assert len(lines) == 1 + 4 * 300


def test_an_audit_log_that_would_wait_for_a_reader_refuses_instead(tmp_path: Path) -> None:
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    audit = AuditLog(path)
    audit.check()
    line = ("admin", "done")
    for _ in range(64 * 1024 // 200):
        with contextlib.suppress(AuditError):
            audit.write(*line, request_id="r" * 200)
    with pytest.raises(AuditError):
        audit.write(*line, request_id="r" * 200)
    os.close(reader)
