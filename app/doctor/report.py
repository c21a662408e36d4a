"""All checks in their order, and what is printed of them. Called by the command line with `quire serve`'s flags."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable

import msgspec
import structlog

from quire.app.doctor.files import check_files
from quire.app.doctor.finding import FAIL, OK, WARN, Finding, fail, ok
from quire.app.doctor.gpu import check_gpus, find_gpus, gpus_needed
from quire.app.doctor.host import check_host
from quire.app.doctor.model import check_model
from quire.app.doctor.ports import check_ports
from quire.app.doctor.versions import check_versions
from quire.app.settings import ServeSettings
from quire.engine.errors import ConfigError

WIDTH = 110
_COLOURS = {OK: "\033[32m", WARN: "\033[33m", FAIL: "\033[31m"}


def main(load: Callable[[], ServeSettings], as_json: bool) -> int:
    """Exit code 0 where nothing failed, 1 otherwise. `load` gives the settings, or raises ConfigError."""
    structlog.configure(processors=[_silent])  # what the checked code would log is in the findings
    os.environ["HF_HUB_OFFLINE"] = "1"  # looking is not fetching
    findings = examine(load)
    failed = any(finding.verdict == FAIL for finding in findings)
    if as_json:
        print(msgspec.json.encode({"ok": not failed, "findings": findings}).decode())
    else:
        print("\n".join(table(findings, coloured=sys.stdout.isatty())))
    return int(failed)


def _silent(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    raise structlog.DropEvent


def examine(load: Callable[[], ServeSettings]) -> list[Finding]:
    """With settings that cannot be used, what needs them is left out."""
    gpus, trouble = find_gpus()
    try:
        settings = load()
    except ConfigError as error:
        return [*(fail("settings", problem, "see quire serve --help") for problem in error.problems),
                *check_gpus(gpus, trouble, "auto"), *check_host(len(gpus)), *check_versions(gpus)]
    needed = gpus_needed(settings.engine)
    used = [] if settings.engine.device == "cpu" else gpus[:needed]
    return [ok("settings", "usable"), *check_gpus(gpus, trouble, settings.engine.device, needed),
            *check_model(settings.engine, used), *check_host(len(used)), *check_versions(used),
            *check_files(settings, used), *check_ports(settings)]


def table(findings: list[Finding], coloured: bool) -> list[str]:
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        verdict = f"{finding.verdict:<4}"
        if coloured:
            verdict = f"{_COLOURS[finding.verdict]}{verdict}\033[0m"
        lines.append(f"{verdict}  {finding.check:<{width}}  {finding.says}")
        if finding.advice:
            indent = " " * (8 + width)
            lines += textwrap.wrap(f"-> {finding.advice}", WIDTH, initial_indent=indent, subsequent_indent=indent,
                                   break_long_words=False)
    counts = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in (FAIL, WARN)}
    lines.append(f"{counts[FAIL]} failed, {counts[WARN]} warning(s)")
    return lines
