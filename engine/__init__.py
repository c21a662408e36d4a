"""Quire's engine. Importing it costs nothing: no torch until an engine is built.

Public names are resolved on first use from the table below.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.config import EngineArgs
    from engine.frontend.async_llm import AsyncEngineArgs, AsyncLLMEngine
    from engine.frontend.llm import LLM
    from engine.frontend.outputs import CompletionOutput, RequestOutput
    from engine.sampling_params import RequestOutputKind, SamplingParams

__version__ = "0.1.0"

_PUBLIC = {
    "LLM": "engine.frontend.llm",
    "AsyncLLMEngine": "engine.frontend.async_llm",
    "EngineArgs": "engine.config",
    "AsyncEngineArgs": "engine.frontend.async_llm",
    "SamplingParams": "engine.sampling_params",
    "RequestOutputKind": "engine.sampling_params",
    "RequestOutput": "engine.frontend.outputs",
    "CompletionOutput": "engine.frontend.outputs",
}

__all__ = [
    "LLM",
    "AsyncEngineArgs",
    "AsyncLLMEngine",
    "CompletionOutput",
    "EngineArgs",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
