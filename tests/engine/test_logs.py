"""On a terminal, a log line is text: nothing that a client wrote moves its cursor, colours it or hides a line."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

PROGRAM = r"""
import structlog
from quire.engine.logs import configure_logging
configure_logging()
log = structlog.get_logger("t")
log.info("request", path="/a\x1b[2J\x1b]0;title\x07\x9b1mb\u202egpj\r\n2026 [error] forged", number=3, name="caf\u00e9")
try:
    raise ValueError("\x1b[31mred")
except ValueError:
    log.exception("broken\x1b[A")
"""
_OURS = re.compile(r"\x1b\[\d+m")  # colours of the renderer's own


def test_control_characters_reach_no_terminal() -> None:
    terminal, end = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", PROGRAM], stderr=end, check=True)
        seen = os.read(terminal, 1 << 16).decode()
    finally:
        os.close(end)
        os.close(terminal)
    lines = _OURS.sub("", seen).splitlines()
    assert "\u001b" not in "".join(lines)
    assert all(line.isprintable() for line in lines), lines
    assert "number=3" in lines[0] and "caf\u00e9" in lines[0] and "forged" in lines[0]
    assert lines[-1].startswith("ValueError: ") and "[31mred" in lines[-1]
    assert len(lines) > 4, "a traceback keeps its lines"
