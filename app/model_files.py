"""`python -m quire.app.model_files`: fetches the model's files where they are not here, and opens them once as the HTTP
workers will. Started by the launcher, so that a fetch may take its time while probes are answered, and so that nothing
of it stays in the launcher.

Exit codes as of `quire serve`: 0 all is well, 2 and 3 with the reason in the fetch state.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

import msgspec

from quire.app.fetch_progress import FetchProgress
from quire.app.fetch_state import FetchState
from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError, InvalidRequestError, PassingError
from quire.engine.exit_codes import EXIT_CONFIG, EXIT_LOAD
from quire.engine.frontend.chat_template import load_chat_template
from quire.engine.lifeline import die_with_parent
from quire.engine.logs import LEVELS, configure_logging
from quire.engine.model_config import ModelConfig
from quire.engine.tokenizers.tokenizer import load_tokenizer
from quire.engine.weights.hub import Report, drop_unfinished
from quire.engine.weights.locate import resolve_model


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m quire.app.model_files", description=__doc__)
    parser.add_argument("--args", required=True, help="EngineArgs as JSON")
    parser.add_argument("--state", required=True, help="file of the fetch state")
    parser.add_argument("--lifeline", type=int, required=True, help="file descriptor whose end of file means: stop")
    parser.add_argument("--log-level", default="info", help=", ".join(LEVELS))
    options = parser.parse_args()
    configure_logging(options.log_level)
    die_with_parent(options.lifeline)
    args = EngineArgs.of(msgspec.json.decode(options.args, type=dict))
    signal.signal(signal.SIGTERM, _stop)
    with FetchProgress(args.model, lambda state: state.save(options.state)) as progress:
        try:
            check_files(args, progress)
        except ConfigError as error:
            FetchState(problems=error.problems).save(options.state)
            return EXIT_LOAD if isinstance(error, PassingError) else EXIT_CONFIG
    return 0


def check_files(args: EngineArgs, report: Report) -> ModelConfig:
    """The model whose files are here then.

    Raises:
        ConfigError: they cannot be had, or tokenizer or chat template not be used.
    """
    model = resolve_model(args, report)
    tokenizer = None if args.skip_tokenizer_init else load_tokenizer(model, args.tokenizer)
    try:
        load_chat_template(model, args.chat_template, tokenizer)
    except InvalidRequestError:  # it has none, which chats are told
        pass
    return model


def _stop(*_: object) -> None:
    drop_unfinished()
    os._exit(128 + signal.SIGTERM)  # the client's threads would hold up any other end


if __name__ == "__main__":
    sys.exit(main())
