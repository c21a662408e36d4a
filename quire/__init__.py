"""Quire: a server for open-weight language models. `from quire import LLM, SamplingParams`.

Importing it costs nothing: public names are resolved on first use from the table below, and torch waits until an engine
is built. What lies beside this file are links: the folders of the tree are its subpackages.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire.engine.config import EngineArgs
    from quire.engine.frontend.async_llm import AsyncEngineArgs, AsyncLLMEngine
    from quire.engine.frontend.beam_search import BeamSearchParams
    from quire.engine.frontend.llm import LLM
    from quire.engine.frontend.outputs import (
        CompletionOutput,
        EmbeddingOutput,
        EmbeddingRequestOutput,
        PoolingOutput,
        PoolingRequestOutput,
        RequestOutput,
    )
    from quire.engine.pooling_params import PoolingParams
    from quire.engine.sampling_params import RequestOutputKind, SamplingParams
    from quire.engine.structured_outputs import GuidedDecodingParams, StructuredOutputsParams

__version__ = "0.1.0"

_PUBLIC = {
    "LLM": "quire.engine.frontend.llm",
    "AsyncLLMEngine": "quire.engine.frontend.async_llm",
    "EngineArgs": "quire.engine.config",
    "AsyncEngineArgs": "quire.engine.frontend.async_llm",
    "SamplingParams": "quire.engine.sampling_params",
    "BeamSearchParams": "quire.engine.frontend.beam_search",
    "RequestOutputKind": "quire.engine.sampling_params",
    "StructuredOutputsParams": "quire.engine.structured_outputs",
    "GuidedDecodingParams": "quire.engine.structured_outputs",
    "RequestOutput": "quire.engine.frontend.outputs",
    "CompletionOutput": "quire.engine.frontend.outputs",
    "EmbeddingOutput": "quire.engine.frontend.outputs",
    "EmbeddingRequestOutput": "quire.engine.frontend.outputs",
    "PoolingOutput": "quire.engine.frontend.outputs",
    "PoolingParams": "quire.engine.pooling_params",
    "PoolingRequestOutput": "quire.engine.frontend.outputs",
}

__all__ = [
    "LLM",
    "AsyncEngineArgs",
    "AsyncLLMEngine",
    "BeamSearchParams",
    "CompletionOutput",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EngineArgs",
    "GuidedDecodingParams",
    "PoolingOutput",
    "PoolingParams",
    "PoolingRequestOutput",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsParams",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'quire' has no attribute {name!r}")
