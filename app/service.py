"""What one HTTP worker holds for as long as it lives. Made by create_app, given its engines by the lifespan."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from app.door import Door
from app.errors import ApiError
from app.in_flight import InFlight
from app.keys.key import ANYONE, Key
from app.keys.ring import KeyRing
from app.settings import WorkerSettings
from app.telemetry.audit import AuditLog
from app.telemetry.metrics import Metrics
from app.telemetry.record import RequestRecord
from app.tls import Tls
from engine.errors import ContextLengthError
from engine.frontend.async_llm import AsyncLLMEngine
from engine.frontend.tokenizer import Tokenizer

if TYPE_CHECKING:
    from app.telemetry.tracing import Tracing


@dataclass
class Service:
    settings: WorkerSettings
    metrics: Metrics
    keys: KeyRing
    audit: AuditLog
    tracing: Tracing | None = None
    tls: Tls | None = None
    in_flight: InFlight = field(default_factory=InFlight)
    door: Door = field(default_factory=Door)
    connected_engine: AsyncLLMEngine | None = None

    @property
    def engine(self) -> AsyncLLMEngine:
        assert self.connected_engine is not None, "requests come only after the lifespan has begun"
        return self.connected_engine

    @property
    def tokenizer(self) -> Tokenizer:
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            raise ApiError(400, "This server runs without a tokenizer (--skip-tokenizer-init): send token ids.")
        return tokenizer

    @property
    def model_defaults(self) -> dict[str, Any]:
        """Sampling defaults that the model's authors chose."""
        built_in = self.settings.serve.engine.generation_config == "vllm"
        return {} if built_in else self.engine.model_config.generation_defaults

    @contextmanager
    def naming_limits(self) -> Iterator[None]:
        """Adds to the refusal of what is too long why it is, where the model itself takes more."""
        try:
            yield
        except ContextLengthError as error:
            raise error.explained(*self._limit_of_context()) from None

    def _limit_of_context(self) -> tuple[str, str]:
        """What limits it if not the model, and what to do, as parts of that refusal."""
        args, info, own = self.settings.serve.engine, self.engine.info, self.engine.model_config.max_position_embeddings
        if info is None or info.max_model_len >= own:
            return "", ""
        if args.max_model_len is not None:
            return (f" here, as --max-model-len says (the model itself takes {own})",
                    ", or start the server with a longer --max-model-len")
        if args.num_gpu_blocks_override is not None:
            flag = "--num-gpu-blocks-override"
        elif info.device == "cpu" or args.kv_cache_memory_bytes is not None:
            flag = "--kv-cache-memory-bytes"
        else:
            flag = "--gpu-memory-utilization"
        return (f" here, which is what the KV cache holds (the model itself takes {own})",
                f", or start the server with more cache ({flag})")

    @staticmethod
    def now() -> int:
        return int(time.time())


def service_of(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def record_of(request: Request) -> RequestRecord:
    record = request.scope["state"]["record"]
    assert isinstance(record, RequestRecord)
    return record


def key_of(request: Request) -> Key:
    """The key that the request came with; one that may do anything but administer where the server asks for none."""
    key = request.scope["state"].get("key", ANYONE)
    assert isinstance(key, Key)
    return key
