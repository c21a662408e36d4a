"""`quire pull`: fetches a model from a hub before a server needs it, by hand or in an init container."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from quire.app.command_parser import CommandParser
from quire.app.fetch_progress import FetchProgress
from quire.app.options import OPTIONS, variable
from quire.app.settings import flag
from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError, PassingError
from quire.engine.exit_codes import EXIT_CONFIG, EXIT_LOAD
from quire.engine.logs import configure_logging
from quire.engine.weights.hub import drop_unfinished
from quire.engine.weights.locate import resolve_model

_EPILOG = """\
Settings are those of `quire serve`, variables included (QUIRE_MODEL, QUIRE_REVISION, QUIRE_DOWNLOAD_DIR). HF_TOKEN is
the access token of models that need one, HF_HOME the folder of the cache, HF_ENDPOINT another hub's address. With
VLLM_USE_MODELSCOPE=True the hub is ModelScope. Files that are whole stay: pulling again fetches only what is missing.

Exit codes: 0 the model is here (its directory or GGUF file is printed), 2 it cannot be had with these settings, 3 not
now."""
_NAMES = ("revision", "download_dir")


def main(argv: list[str]) -> int:
    parser = CommandParser(prog="quire pull", usage="quire pull [MODEL] [--flag VALUE ...]", epilog=_EPILOG,
                           description="Fetch a model, so that the first start need not wait for it.",
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=os.environ.get(variable("model"), EngineArgs.model),
                        metavar="MODEL", help=OPTIONS["model"].help)
    for name in _NAMES:
        parser.add_argument(flag(name), default=os.environ.get(variable(name)), metavar="TEXT",
                            help=OPTIONS[name].help)
    options = parser.parse_args(argv)
    args = EngineArgs(**vars(options))
    configure_logging()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        with FetchProgress(args.model) as progress:
            print(resolve_model(args, progress).path)
    except ConfigError as error:
        for problem in error.problems:
            print(f"quire pull: {problem}", file=sys.stderr)
        return EXIT_LOAD if isinstance(error, PassingError) else EXIT_CONFIG
    return 0


def _stop(number: int, _: object) -> None:
    drop_unfinished()
    if sys.stderr.isatty():
        os.write(2, b"\n")  # below the bar
    os._exit(128 + number)

