"""One HTTP request's dealings with the engine: its prompts submitted, their updates merged, its tokens and times kept.

Leaving it aborts what is unfinished. Knows nothing of chat, completions and JSON; both endpoints are built on it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType

from app.errors import INTERNAL, ApiError
from app.schemas.usage import PromptTokensDetails, Usage
from app.service import Service
from app.telemetry.record import RequestRecord
from engine.frontend.async_llm import Stream
from engine.frontend.generation import SampleUpdate
from engine.sampling_params import SamplingParams


class Exchange:
    def __init__(self, service: Service, record: RequestRecord) -> None:
        self._service = service
        self._record = record
        self._streams: list[Stream] = []
        self._last_output: dict[int, float] = {}  # choice -> when, for the gaps between outputs

    async def __aenter__(self) -> Exchange:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        traceback: TracebackType | None) -> None:
        await self.close()

    @property
    def prompt_token_ids(self) -> list[list[int]]:
        return [stream.prompt_token_ids for stream in self._streams]

    @property
    def usage(self) -> Usage:
        """Counts so far."""
        record = self._record
        return Usage(record.prompt_tokens, record.prompt_tokens + record.output_tokens, record.output_tokens,
                     PromptTokensDetails(record.cached_tokens))

    async def submit(self, prompt: str | list[int], params: SamplingParams, *, priority: int, cache_salt: str,
                     add_special_tokens: bool) -> None:
        """Send one prompt; returns when the engine accepted it. Raises what AsyncLLMEngine.submit raises."""
        record = self._record
        stream = await self._service.engine.submit(
            prompt, params, record.request_id, priority=priority, key=record.key, cache_salt=cache_salt,
            add_special_tokens=add_special_tokens)
        self._streams.append(stream)
        record.prompt_tokens += len(stream.prompt_token_ids)

    async def updates(self, samples_per_prompt: int) -> AsyncGenerator[SampleUpdate, None]:
        """Every update of every prompt; `index` is the choice's: prompt by prompt, sample by sample."""
        async for prompt_index, update in _merge(self._streams):
            if update.finish_reason == "error":
                raise ApiError(500, INTERNAL)
            if update.index == 0 and update.num_cached_tokens is not None:
                self._record.cached_tokens += update.num_cached_tokens
            update.index += prompt_index * samples_per_prompt
            self._count(update)
            yield update

    async def close(self) -> None:
        streams, self._streams = self._streams, []
        for stream in streams:
            await stream.aclose()
        if streams:
            self._service.metrics.generation_ended(self._record, time.perf_counter())

    def _count(self, update: SampleUpdate) -> None:
        record = self._record
        if update.token_ids:
            now = time.perf_counter()
            metrics = self._service.metrics
            if record.first_token is None:
                record.first_token = now
                metrics.ttft.observe(now - record.started)
            before = self._last_output.get(update.index)
            if before is not None:
                metrics.inter_token.observe(now - before)
            self._last_output[update.index] = record.last_token = now
            record.output_tokens += len(update.token_ids)
        if update.finish_reason is not None:
            record.finish_reasons.append(update.finish_reason)


async def _merge(streams: list[Stream]) -> AsyncIterator[tuple[int, SampleUpdate]]:
    if len(streams) == 1:  # nearly always: no task, no queue
        async for update in streams[0]:
            yield 0, update
        return
    queue: asyncio.Queue[tuple[int, SampleUpdate] | Exception | None] = asyncio.Queue()

    async def pump(index: int, stream: Stream) -> None:
        try:
            async for update in stream:
                queue.put_nowait((index, update))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(streams)]
    try:
        remaining = len(tasks)
        while remaining:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                remaining -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
