"""schemathesis against a real server and its own OpenAPI document: no 5xx, and no status, header, media type or content
that the document does not have. What it sends is made of the document, valid and not.

`make check-api` (minutes) tries more than tests/e2e/test_openapi.py has the time for.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.e2e.server import KEY, serving

CONFIG = Path(__file__).with_name("schemathesis.toml")


def attack(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """One run, of which nothing is left behind; it failed where its exit status is not 0.

    By one thread: Python 3.11's parser, which hypothesis uses, fails now and then where two use it.
    """
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{url}/openapi.json",
               "-H", f"Authorization: Bearer {KEY}", "--continue-on-failure", "--request-timeout", "60", "-w", "1",
               "--generation-database", "none", "--no-color", *options]
    with tempfile.TemporaryDirectory() as scratch:
        return subprocess.run(command, cwd=scratch, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def main(options: list[str]) -> int:
    with serving("--max-model-len", "256") as server:
        done = attack(server.url, "--phases", "examples,coverage,fuzzing", "-n", "50", *options)
    print(done.stdout)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
