"""The keys that this worker lets in: those without a name, from the settings, and those of the key file.

Read anew as a whole: a file with anything wrong changes nothing, save that `healthy` turns false. Knows no HTTP.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import threading
import time
from collections.abc import Iterable

import structlog

from quire.app.keys.key import Key, digest_of, plain_key
from quire.app.keys.key_file import load_key_file, write_key_file
from quire.app.watch import Stamp, stamp
from quire.engine.errors import ConfigError

log = structlog.get_logger(__name__)


class KeyRing:
    """`last_good` is a file of the run directory with what was read last, for a worker that starts while `path` is
    broken: it lets in whom its siblings let in."""

    def __init__(self, plain_digests: Iterable[str] = (), path: str | None = None,
                 last_good: str | None = None) -> None:
        self._plain = [plain_key(digest) for digest in plain_digests]
        self._path = path
        self._last_good = last_good
        self._reading = threading.Lock()
        self.stamp: Stamp = None  # of the key file when it was read last
        self.healthy = True  # the key file, where there is one, could be used when it was read last
        self.loaded_at = time.time()  # when the keys in use were read
        self.keys: tuple[Key, ...] = ()
        self._use([])
        if path is not None and not self.reload() and last_good is not None:
            self._fall_back(last_good)

    @property
    def required(self) -> bool:
        """Requests need a key, be it that none is left that would be let in."""
        return bool(self._plain) or self._path is not None

    def find(self, secret: str) -> Key | None:
        """The key that `secret` proves, unless it has expired."""
        presented = bytes.fromhex(digest_of(secret))
        found = None
        for digest, key in self._entries:  # all of them, whichever fits, so that time tells nothing
            if hmac.compare_digest(digest, presented):
                found = key
        return None if found is None or found.expired else found

    def reload(self) -> bool:
        """Read the key file; False where it is broken, and all stays as it was. May be called in a thread."""
        if self._path is None:
            return True
        with self._reading:  # the last to begin reads the newest file, and must be the last to end
            self.stamp = stamp(self._path)
            try:
                keys = load_key_file(self._path)
            except ConfigError as error:
                self.healthy = False
                log.error("key file cannot be used; the keys read before stay", problems=error.problems)
                return False
            self._use(keys)
            self.healthy = True
            self._remember(keys)
        log.info("key file read", keys=len(keys))
        return True

    def _use(self, named: list[Key]) -> None:
        # A digest that is in both has the file's limits: later entries win.
        keys = {key.sha256: key for key in (*self._plain, *named)}
        self._entries = [(bytes.fromhex(digest), key) for digest, key in keys.items()]
        self.keys = tuple(keys.values())
        self.loaded_at = time.time()

    def _remember(self, keys: list[Key]) -> None:
        if self._last_good is None:
            return
        try:
            write_key_file(self._last_good, keys)
        except OSError as error:  # rather no key than one that was revoked
            log.warning("a worker that starts while the key file is broken will have no named keys", reason=str(error))
            with contextlib.suppress(OSError):
                os.unlink(self._last_good)

    def _fall_back(self, last_good: str) -> None:
        try:
            self._use(load_key_file(last_good))
        except ConfigError as error:
            log.error("no keys from the key file", problems=error.problems)
