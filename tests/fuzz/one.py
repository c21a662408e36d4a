"""Fuzz one target until its time is over or it fails: `python -m tests.fuzz.one TARGET OPTION ...`, with libFuzzer's
options. Needs the package atheris, whose coverage of our code leads the fuzzer. Started by `tests.fuzz`."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

INSTRUMENTED = ["quire", "yaml"]


def main(name: str, options: list[str]) -> None:
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = importlib.import_module("tests.fuzz.targets").load(name).target
    structlog = importlib.import_module("structlog")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    atheris.Setup([sys.argv[0], *options], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
