"""One thing that the doctor looked at. What every check returns a list of; knows no check."""

from __future__ import annotations

import msgspec

OK, WARN, FAIL = "ok", "warn", "fail"
GIB = 2**30


class Finding(msgspec.Struct, frozen=True):
    check: str  # what was looked at, in a word or two
    verdict: str  # fail: the server will not start or not serve; warn: it will, and may disappoint
    says: str
    advice: str = ""  # what to do; never empty unless ok


def ok(check: str, says: str) -> Finding:
    return Finding(check, OK, says)


def warn(check: str, says: str, advice: str) -> Finding:
    return Finding(check, WARN, says, advice)


def fail(check: str, says: str, advice: str) -> Finding:
    return Finding(check, FAIL, says, advice)


def gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.0f} MiB"
