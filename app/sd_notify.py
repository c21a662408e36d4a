"""systemd's notification protocol: one datagram of `NAME=value` lines, where systemd asked for it."""

from __future__ import annotations

import contextlib
import os
import socket


def sd_notify(*lines: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A supervisor that does not listen must not stop a server that serves.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto("\n".join(lines).encode(), address)
