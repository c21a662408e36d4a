"""An engine of a few lines with AsyncLLMEngine's face, for what the service does with replies of known content.

Its tokens are characters; it answers every prompt with the same text. Nothing here is tested for its own sake: what the
real engine does is tests/e2e's matter.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from types import SimpleNamespace
from typing import Any

from quire.engine.errors import EngineDeadError, InvalidRequestError, OverloadedError
from quire.engine.frontend.generation import SampleUpdate
from quire.engine.messages import EngineInfo, RateState, TokenLogprobs
from quire.engine.pooling_params import PoolingParams
from quire.engine.sampling_params import SamplingParams

INFO = EngineInfo(model="m", dtype="float32", device="cpu", max_model_len=100, vocab_size=0x110000, num_blocks=8,
                  block_size=16, kv_tokens=128, max_num_seqs=4, max_num_batched_tokens=64, max_logprobs=20,
                  instance="i")


class FakeTokenizer:
    vocab_size = 0x110000
    special_ids: frozenset[int] = frozenset()
    added_ids: frozenset[int] = frozenset()
    strips_leading_space = spaces_tokens = False

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in text]

    def counted_tokens(self, text: str, enough: int) -> int:
        return min(len(text), enough)

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))

    def pieces(self, ids: list[int], skip_special_tokens: bool) -> list[bytes]:
        return [self.token_bytes(id) for id in ids]

    def token_text(self, id: int) -> str:
        return chr(id)

    def token_bytes(self, id: int) -> bytes:
        return chr(id).encode()


class FakeTemplate:
    source = ""  # a template that knows neither tools nor thinking

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def render(self, messages: list[dict[str, Any]], **kwargs: Any) -> str:
        self.seen.append((messages, kwargs))
        if kwargs.get("no_system") and messages[0]["role"] == "system":
            raise InvalidRequestError("System role not supported", "messages")
        return "".join(str(m["content"]) for m in messages)


class FakeStream:
    def __init__(self, engine: FakeEngine, prompt_token_ids: list[int], params: SamplingParams) -> None:
        self.prompt_token_ids = prompt_token_ids
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        if params.prompt_logprobs is not None:
            self.prompt_logprobs = [None, *(TokenLogprobs(-1.5, 2, [ord("?"), id], [-0.5, -1.5])
                                            for id in prompt_token_ids[1:])]
        self.closed = False
        self.rate = engine.rate
        self.started_at: float | None = time.perf_counter()
        self.num_resumed = 0
        self._engine = engine
        self._updates = self._produce(params)

    async def _produce(self, params: SamplingParams) -> Any:
        text = self._engine.text[:params.max_tokens]
        for index in reversed(range(params.n)) if self._engine.backwards else range(params.n):
            for position, char in enumerate(text):
                await self._engine.gate.wait()
                if self._engine.fails_after == position:
                    raise self._engine.failure
                logprobs = [TokenLogprobs(-0.5, 1, [ord(char), ord("?")], [-0.5, float("-inf")])]
                last = position == len(text) - 1
                yield SampleUpdate(index, char, [ord(char)], logprobs if params.logprobs is not None else [],
                                   self._engine.finish_reason if last else None, self._engine.stop_reason,
                                   min(3, len(self.prompt_token_ids)) if position == 0 else None)

    def embed(self, params: PoolingParams) -> None:
        async def update() -> Any:
            await self._engine.gate.wait()
            self.embedding = array("f", self.prompt_token_ids[:params.dimensions or 4])
            yield SampleUpdate(0, "", [], [], "stop", None, 0)

        self.embedding = array("f")
        self._updates = update()

    def __aiter__(self) -> Any:
        return self._updates

    async def aclose(self) -> None:
        self.closed = True


class FakeEngine:
    def __init__(self) -> None:
        self.text = "Hi 👋!"
        self.finish_reason = "stop"
        self.stop_reason: str | None = None
        self.backwards = False  # the last sample of a request comes first
        self.info: EngineInfo | None = INFO
        self.state = "ready"
        self.loading = ("loading weights", 0.25)
        self.load_eta_s: float | None = 12.5
        self.silent_s = 0.0
        self.status = None
        self.lost: dict[int, bool] = {}
        self.others: list[FakeEngine] = []  # behind the same front
        self.tokenizer: FakeTokenizer | None = FakeTokenizer()
        self.chat_template = FakeTemplate()
        self.model_config = SimpleNamespace(generation_defaults={}, vision=None,
                                            max_position_embeddings=INFO.max_model_len)
        self.gate = asyncio.Event()
        self.gate.set()
        self.away = False  # submissions are neither accepted nor refused
        self.fails_after = -1
        self.failure: Exception = RuntimeError("boom at /secret/path")
        self.refuse: Exception | None = None
        self.refuses_after = 0  # prompts to embed
        self.rate: RateState | None = None
        self.submitted: list[tuple[Any, SamplingParams, dict[str, Any]]] = []
        self.streams: list[FakeStream] = []

    takes_images = False

    @property
    def engines(self) -> list[Any]:
        return [self, *self.others]

    def require_info(self) -> EngineInfo:
        if self.info is None:
            raise OverloadedError("The model is not ready yet.", retry_after_s=5.0, reason="loading")
        return self.info

    async def submit(self, prompt: Any, params: SamplingParams, request_id: str, **kwargs: Any) -> FakeStream:
        if self.refuse is not None:
            raise self.refuse
        if self.away:
            await asyncio.Event().wait()
        self.submitted.append((prompt, params, {"request_id": request_id, **kwargs}))
        ids = prompt if isinstance(prompt, list) else FakeTokenizer().encode(prompt)
        self.streams.append(FakeStream(self, ids, params))
        return self.streams[-1]

    async def submit_embedding(self, prompt: Any, params: PoolingParams, request_id: str, **kwargs: Any) -> FakeStream:
        """A vector of the prompt's first characters, as one update."""
        if self.refuse is not None and len(self.streams) == self.refuses_after:
            raise self.refuse
        ids = prompt if isinstance(prompt, list) else FakeTokenizer().encode(prompt)
        self.streams.append(FakeStream(self, ids, SamplingParams()))
        self.streams[-1].embed(params)
        return self.streams[-1]

    async def lose(self, place: int, error: EngineDeadError, *, after_kill: bool) -> None:
        if place not in self.lost:
            self.lost[place] = after_kill

    async def watch(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass
