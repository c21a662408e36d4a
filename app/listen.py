"""The listening sockets, bound by the launcher: a taken port is known at once, and HTTP processes may come and go."""

from __future__ import annotations

import errno
import os
import socket
import stat

from quire.app.settings import ServeSettings
from quire.engine.errors import ConfigError

BACKLOG = 2048


def listen(settings: ServeSettings) -> socket.socket:
    """Raises ConfigError where the address cannot be had."""
    if settings.uds:
        return _listen_unix(settings.uds)
    return _listen_tcp(settings.address, settings.port, "--host", "--port")


def listen_admin(settings: ServeSettings) -> socket.socket | None:
    """The admin port's, if there is one. Raises ConfigError where the address cannot be had."""
    if settings.admin_port is None:
        return None
    return _listen_tcp(settings.admin_host, settings.admin_port, "--admin-host", "--admin-port")


def _listen_tcp(host: str, port: int, host_flag: str, port_flag: str) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"{host_flag}: {host}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{port_flag}: cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def _listen_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
            _unlink_unless_served(path)
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"--uds: cannot listen on {path}: {error.strerror}") from None
    return listener


def _unlink_unless_served(path: str) -> None:
    """A dead server's socket refuses to be connected to; a live one is not taken away from its clients."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def url_of(listener: socket.socket, scheme: str) -> str:
    """Where a person on this machine reaches it."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[0], name[1]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
