"""What one HTTP worker holds for as long as it lives. Made by create_app, given its engines by the lifespan."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from quire.app.door import Door
from quire.app.errors import ApiError
from quire.app.fetch_state import FetchState
from quire.app.in_flight import InFlight
from quire.app.keys.key import ANYONE, Key
from quire.app.keys.ring import KeyRing
from quire.app.replies.style import ReplyStyle
from quire.app.telemetry.audit import AuditLog
from quire.app.telemetry.metrics import Metrics
from quire.app.telemetry.record import RequestRecord
from quire.app.tls import Tls
from quire.app.worker_settings import WorkerSettings
from quire.engine.errors import OverloadedError
from quire.engine.frontend.async_llm import AsyncLLMEngine
from quire.engine.frontend.context_limit import naming_limits
from quire.engine.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from quire.app.telemetry.tracing import Tracing


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
        """Raises OverloadedError while the model's files are not here."""
        if self.connected_engine is None:
            state = self.fetch_state()
            raise OverloadedError(f"The model is not ready yet: {state.phase}, {state.fraction:.0%}.",
                                  retry_after_s=5.0, reason="loading")
        return self.connected_engine

    def fetch_state(self) -> FetchState:
        try:
            return FetchState.load(self.settings.fetch_file)
        except FileNotFoundError:  # the files are here since just now
            return FetchState("starting")

    @property
    def tokenizer(self) -> Tokenizer:
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            raise ApiError(400, "This server runs without a tokenizer (--skip-tokenizer-init): send a list of token "
                                "ids as the prompt of /v1/completions.")
        return tokenizer

    @cached_property
    def reply_style(self) -> ReplyStyle:
        """How the model thinks and calls tools."""
        settings = self.settings.serve
        return ReplyStyle.of(self.engine.chat_template.source, settings.tool_call_parser, settings.reasoning_parser)

    @property
    def model_defaults(self) -> dict[str, Any]:
        """Sampling defaults that the model's authors chose."""
        built_in = self.settings.serve.engine.generation_config == "vllm"
        return {} if built_in else self.engine.model_config.generation_defaults

    def prefix_salt(self, key: Key, asked: str) -> str:
        """What a cached prefix goes by beside its tokens. Whether a prompt was there before shows in its time and in
        `cached_tokens`, so no key finds what another sent."""
        return asked if self.settings.serve.share_prefixes else key.salted(asked)

    def naming_limits(self) -> AbstractContextManager[None]:
        """What is refused inside as too long says why, where the model itself would take it."""
        return naming_limits(self.settings.serve.engine, self.engine.model_config, self.engine.info)

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
