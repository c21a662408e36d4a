"""systemd's notification protocol, where systemd asked for it: datagrams of `NAME=value` lines.

The launcher says what it knows through `Systemd`; what that means in systemd's words, and how often it bears repeating,
is decided here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

# A load that makes progress may take as long as it does: systemd is asked for so much more time again and again.
LOADING_S = 120.0
REPEAT_S = 5.0
SEND_S = 1.0


class Systemd:
    def __init__(self) -> None:
        self._status = ""
        self._next_extension = 0.0
        usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
        mine = usec.isdigit() and int(usec) > 0 and pid in ("", str(os.getpid()))
        self.watchdog_s: float | None = int(usec) / 1e6 if mine else None

    def loading(self, status: str = "") -> None:
        """The load made progress; called as often as it does."""
        if status:
            self.status(status)
        now = time.monotonic()
        if now >= self._next_extension:
            self._next_extension = now + REPEAT_S
            _send(_extension(LOADING_S))

    def status(self, status: str) -> None:
        """A line for `systemctl status`; sent when it changed."""
        if status != self._status:
            self._status = status
            _send(f"STATUS={status}")

    def ready(self) -> None:
        self._status = "serving"
        _send("READY=1", "STATUS=serving")

    def alive(self) -> None:
        _send("WATCHDOG=1")

    def reloading(self) -> None:
        _send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self, was_ready: bool) -> None:
        """Ends `reloading`. Before the first READY there is no reload to end, and it would not be true."""
        if was_ready:
            _send("READY=1")

    def stopping(self, within_s: float) -> None:
        _send("STOPPING=1", "STATUS=draining", _extension(within_s))


def _extension(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}"


def _send(*lines: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A supervisor that does not listen, or is slow to, must not stop a server that serves.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(SEND_S)
        sender.sendto("\n".join(lines).encode(), address)
