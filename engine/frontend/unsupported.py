"""What becomes of the arguments that programs written for vLLM pass to `LLM` and `AsyncEngineArgs`."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import Any

import structlog

from quire.engine.arguments import asks_for_nothing
from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError
from quire.engine.frontend.vllm_arguments import AS_IF_UNSET, OTHER_NAMES, VLLM_ARGUMENTS

# Its own printer, so that lines go to stderr in a program that never configured structlog too.
_log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
_IGNORED = ("served_model_name",)  # there is no server here


def asked_for(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those that ask for something, under Quire's names, for `EngineArgs` to take or refuse.

    Raises:
        ConfigError: this version does not implement some of them; all of these are named.
    """
    known = {field.name for field in fields(EngineArgs)}
    problems, left = [], {}
    for written, value in arguments.items():
        name = OTHER_NAMES.get(written, written)
        foreign = VLLM_ARGUMENTS.get(name)
        if foreign is not None and not foreign.of_server:
            if problem := foreign.problem(name, value):
                problems.append(problem)
            elif warning := foreign.warning(name, value):
                _log.warning(warning)
        elif name in _IGNORED or (name in known and asks_for_nothing(value, AS_IF_UNSET.get(name, ()))):
            continue
        elif name != written and name in arguments:
            problems.append(f"{written}: it is {name}, which is given too; keep one of them")
        else:
            left[name if name in known else written] = value
    if problems:
        raise ConfigError(problems)
    return left
