"""One HTTP request's dealings with the engine: its deadlines set, its prompts submitted, their updates merged, its
tokens and times kept.

Leaving it aborts what is unfinished. Knows nothing of chat, completions and JSON; all endpoints of the model are built
on it.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType

from starlette.requests import Request

from quire.app.deadlines import Deadlines
from quire.app.errors import ApiError, rate_headers
from quire.app.in_flight import running_of
from quire.app.schemas.usage import PromptTokensDetails, Usage
from quire.app.service import key_of, record_of, service_of
from quire.app.sse import EventStream
from quire.engine.errors import OverloadedError
from quire.engine.frontend.async_llm import Stream
from quire.engine.frontend.generation import SampleUpdate
from quire.engine.frontend.media.loader import NO_IMAGES, LoadedImages
from quire.engine.messages import TokenLogprobs
from quire.engine.pooling_params import PoolingParams
from quire.engine.sampling_params import SamplingParams

MOST_TOLD = 2**20  # logprobs of prompts' tokens that a reply repeats


class Exchange:
    def __init__(self, request: Request) -> None:
        """To be made before the body is read: from here on the deadlines hold.

        Raises:
            OverloadedError: the engine would refuse it, whatever it asks; known without asking.
            EngineDeadError: the engine is gone for good.
            ApiError: a deadline's header makes no sense.
        """
        self._service = service_of(request)
        self._record = record_of(request)
        self._key = key_of(request)
        self._running = running_of(request)
        self._service.door.check(self._record.key.name)
        self.max_model_len = self._service.engine.require_info().max_model_len
        self._deadlines = Deadlines.of(request.headers, self._service.settings.serve)
        self._deadlines.arm(self._running, self._record)
        self._streams: list[Stream] = []
        self._last_output: dict[int, float] = {}  # choice -> when, for the gaps between outputs
        self._num_output: dict[int, int] = {}  # choice -> tokens
        self._num_told = 0  # logprobs of prompts' tokens and their alternatives, for each choice

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

    @property
    def headers(self) -> dict[str, str]:
        """For the reply: where the key stands with its limits, as of the last prompt accepted."""
        return rate_headers(self._record.rate)

    def check_prompts(self, num_prompts: int, field: str = "prompt") -> None:
        """Raises ApiError for more prompts than the key may ever have running or send, as each counts as a request."""
        key = self._record.key
        limits = (key.max_concurrent, "unfinished requests"), (key.requests_per_minute, "requests a minute")
        for limit, what in limits:
            if limit and num_prompts > limit:
                raise ApiError(400, f"{num_prompts} prompts count as {num_prompts} requests, and the key {key.name!r} "
                                    f"may have {limit} {what}. Send at most {limit} prompts at a time.", field)

    def stream(self, frames: AsyncGenerator[bytes, None], kind: Callable[..., EventStream] = EventStream
               ) -> EventStream:
        """The reply made of `frames`."""
        return kind(frames, self._running, headers=self.headers,
                    ping_interval_s=self._service.settings.serve.sse_ping_interval)

    async def submit(self, prompt: str | list[int], params: SamplingParams, *, priority: int, cache_salt: str,
                     add_special_tokens: bool, clamp: bool = False, images: LoadedImages = NO_IMAGES) -> None:
        """Send one prompt; returns when the engine accepted it. `clamp`: max_tokens beyond what the context leaves are
        no error. `images` are released with the stream. Raises what AsyncLLMEngine.submit raises."""
        async with self._all_or_none():
            stream = await self._accepted(
                partial(self._service.engine.submit, prompt, params, clamp=clamp, images=images), priority, cache_salt,
                add_special_tokens=add_special_tokens)
            if params.prompt_logprobs is not None:
                self._bound_told(len(stream.prompt_token_ids) * params.n * (params.prompt_logprobs + 1))
        self._note(stream, prompt, params.n)

    async def submit_embedding(self, prompt: str | list[int], params: PoolingParams, *, priority: int, cache_salt: str,
                               add_special_tokens: bool) -> None:
        """As `submit`, for a vector."""
        async with self._all_or_none():
            stream = await self._accepted(partial(self._service.engine.submit_embedding, prompt, params), priority,
                                          cache_salt, add_special_tokens=add_special_tokens)
        self._note(stream, prompt, 1)

    @asynccontextmanager
    async def _all_or_none(self) -> AsyncIterator[None]:
        """Where one is refused, or the client leaves, those that were accepted do not run on."""
        try:
            yield
        except BaseException:
            await self.close()
            raise

    async def _accepted(self, submit: Callable[..., Awaitable[Stream]], priority: int, cache_salt: str, *,
                        add_special_tokens: bool) -> Stream:
        record = self._record
        if record.submitted is None:
            record.submitted = time.perf_counter()
        try:
            stream = await submit(
                record.request_id, priority=self._key.effective_priority(priority), key=record.key,
                cache_salt=self._service.prefix_salt(self._key, cache_salt),
                queue_timeout_s=self._deadlines.queue_timeout_s(record), add_special_tokens=add_special_tokens)
        except OverloadedError as error:
            raise self._service.door.refused(record.key.name, error) from None
        self._streams.append(stream)
        return stream

    def _note(self, stream: Stream, prompt: str | list[int], num_samples: int) -> None:
        record = self._record
        record.rate = stream.rate
        record.num_samples += num_samples
        if record.content is not None:
            record.content.prompts.append(str(prompt))
        record.prompt_tokens += len(stream.prompt_token_ids)

    def _bound_told(self, count: int) -> None:
        """Raises ApiError where a short request would get far too long a reply."""
        self._num_told += count
        if self._num_told > MOST_TOLD:
            raise ApiError(400, "The logprobs of all prompts' tokens, with their alternatives, for each of n choices, "
                           f"are {self._num_told} or more; at most {MOST_TOLD} are told. Ask for fewer alternatives, a "
                           "smaller n or shorter prompts.", "prompt_logprobs")

    @property
    def prompt_logprobs(self) -> list[list[TokenLogprobs | None] | None]:
        """Of each prompt; whole before its first update."""
        return [stream.prompt_logprobs for stream in self._streams]

    async def updates(self, samples_per_prompt: int, *, with_output: bool = True
                      ) -> AsyncGenerator[SampleUpdate, None]:
        """Every update of every prompt; `index` is the choice's: prompt by prompt, sample by sample. Without output,
        they only tell that a choice has ended."""
        prompts = self.prompt_token_ids
        try:
            async for prompt_index, update in _merge(self._streams):
                if update.finish_reason == "error":
                    self._record.finish_reasons.append("error")
                    raise ApiError(400, str(update.stop_reason))
                if update.index == 0 and update.num_cached_tokens is not None:
                    self._record.cached_tokens += update.num_cached_tokens
                    self._service.metrics.prompt_taken_up(len(prompts[prompt_index]), update.num_cached_tokens)
                update.index += prompt_index * samples_per_prompt
                if not with_output:
                    update = SampleUpdate(update.index, "", [], [], update.finish_reason and "length")
                self._count(update)
                yield update
        except OverloadedError as error:
            self._deadlines.name_choice(error)
            raise self._service.door.refused(self._record.key.name, error) from None

    async def vectors(self) -> AsyncGenerator[tuple[int, array[float]], None]:
        """Those of all prompts, as they come: each with its prompt's place."""
        streams = list(self._streams)
        async for update in self.updates(1):
            if self._record.first_token is None:
                self._record.first_token = time.perf_counter()  # the deadline for a first sign is met
            yield update.index, streams[update.index].embedding

    async def close(self) -> None:
        streams, self._streams = self._streams, []
        for stream in streams:
            await stream.aclose()
        if streams:
            record = self._record
            record.taken_up = min((s.started_at for s in streams if s.started_at is not None), default=None)
            record.num_resumed = max(s.num_resumed for s in streams)
            record.longest_output = max(self._num_output.values(), default=0)

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
            metrics.tokens_generated(len(update.token_ids))
            self._num_output[update.index] = self._num_output.get(update.index, 0) + len(update.token_ids)
        if record.content is not None:
            record.content.add_output(update.index, update.text)
        if update.finish_reason is not None:
            record.finish_reasons.append(update.finish_reason)


async def _merge(streams: list[Stream]) -> AsyncIterator[tuple[int, SampleUpdate]]:
    if len(streams) == 1:  # nearly always: no task, no queue
        async for update in streams[0]:
            yield 0, update
        return
    # With an end, so that what a slow reader leaves waits in the streams, which merge it.
    queue: asyncio.Queue[tuple[int, SampleUpdate] | Exception | None] = asyncio.Queue(2 * len(streams))

    async def pump(index: int, stream: Stream) -> None:
        try:
            async for update in stream:
                await queue.put((index, update))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

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
