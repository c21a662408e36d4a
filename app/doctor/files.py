"""What the server reads and writes: certificates, keys, audit log, run directory, caches."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from quire.app.doctor.finding import Finding, fail, ok, warn
from quire.app.doctor.gpu import Gpu
from quire.app.keys.key import Key
from quire.app.keys.key_file import load_key_file
from quire.app.run_dir import MAX_PATH, openness, wanted_run_dir
from quire.app.settings import ServeSettings
from quire.app.telemetry.audit import AuditLog
from quire.app.tls import Tls, check_tls
from quire.engine.errors import ConfigError

SOON_S = 14 * 86400


def check_files(settings: ServeSettings, gpus: Sequence[Gpu]) -> list[Finding]:
    return [*check_certificate(settings, time.time()), *check_key_file(settings), *check_run_dir(settings),
            *check_audit_log(settings), *_check_caches(settings, gpus)]


def check_certificate(settings: ServeSettings, now: float) -> list[Finding]:
    if settings.ssl_certfile is None:
        return []
    try:
        check_tls(settings)
        not_after = Tls(settings).not_after
    except ConfigError as error:
        return [fail("certificate", problem, "replace the file; it is read again when it changes")
                for problem in error.problems]
    says = f"{settings.ssl_certfile} is good until {_date(not_after)}"
    if not_after < now + SOON_S:
        return [warn("certificate", says, "renew it; a running server takes the new file without a restart")]
    return [ok("certificate", says)]


def check_key_file(settings: ServeSettings) -> list[Finding]:
    path = settings.api_key_file
    if path is None:
        return []
    try:
        keys = load_key_file(path)
    except ConfigError as error:
        return [fail("key file", problem, "mend the file; quire keys writes good ones") for problem in error.problems]
    return [ok("key file", f"{path} holds {len(keys)} key(s)"), *_check_expiry(keys)]


def _check_expiry(keys: list[Key]) -> list[Finding]:
    soon = datetime.fromtimestamp(time.time() + SOON_S, timezone.utc)
    return [warn("key file", f"the key {key.name} {'has ended' if key.expired else 'ends'} at {key.not_after:%Y-%m-%d}",
                 "quire keys create another and give it to its user, then quire keys revoke this one")
            for key in keys if key.not_after is not None and key.not_after < soon]


def check_audit_log(settings: ServeSettings) -> list[Finding]:
    path = settings.audit_log
    if path is None:
        return []
    new = not os.path.exists(path)
    try:
        AuditLog(path).check()
    except ConfigError as error:
        return [fail("audit log", problem, "give a file that this user may append to") for problem in error.problems]
    if new:
        os.unlink(path)
    return [ok("audit log", path)]


def check_run_dir(settings: ServeSettings) -> list[Finding]:
    wanted = wanted_run_dir(settings.run_dir)
    path = wanted or tempfile.gettempdir()
    if len(os.path.abspath(path)) > MAX_PATH:
        return [fail("run directory", f"{path} is longer than {MAX_PATH} characters, too long for a socket",
                     "give a shorter --run-dir")]
    judged = wanted and os.path.isdir(wanted) and not settings.allow_shared_run_dir
    if judged and (problem := openness(wanted, os.stat(wanted))):
        return [fail("run directory", problem, "mend that, or give another --run-dir")]
    return [check_writable("run directory", path, "give a directory that this user may write to with --run-dir")]


def _check_caches(settings: ServeSettings, gpus: Sequence[Gpu]) -> list[Finding]:
    found = []
    if gpus and settings.engine.device != "cpu":
        found.append(check_writable(
            "Triton's cache", os.environ.get("TRITON_CACHE_DIR") or str(Path.home() / ".triton" / "cache"),
            "name a directory that this user may write to with TRITON_CACHE_DIR; kernels are compiled into it"))
    return found


def check_writable(check: str, path: str, advice: str) -> Finding:
    """By writing, in the directory itself or in the nearest above it that is there: what no mode bit tells."""
    there = Path(path).absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        return fail(check, f"{there} cannot be written to: {error.strerror}", advice)
    return ok(check, path)


def _date(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(unix_s))
