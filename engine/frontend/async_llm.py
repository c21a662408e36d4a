"""AsyncLLMEngine: the engine as an asyncio object. The HTTP worker `connect`s to those that the launcher started; a
program of its own uses `from_engine_args`, which starts them beside it and ends them with itself.

Text in, text out: tokenizer and chat template live here, the core sees token ids. Never imports torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from functools import partial
from typing import Any

from quire.engine.arguments import integer, shown, unsupported
from quire.engine.config import EngineArgs, refuse_unknown
from quire.engine.errors import EngineDeadError, InvalidRequestError, MisuseError
from quire.engine.frontend.chat_template import ChatTemplate, load_chat_template
from quire.engine.frontend.client import EngineClient
from quire.engine.frontend.context_limit import naming_limits
from quire.engine.frontend.engine_group import EngineGroup
from quire.engine.frontend.engine_process import EngineProcess
from quire.engine.frontend.generation import Generation, SampleUpdate
from quire.engine.frontend.media.given import images_of, options_of, without_images
from quire.engine.frontend.media.loader import NO_IMAGES, ImageLoader, LoadedImages
from quire.engine.frontend.media.placeholders import expanded, naming_image_tokens, num_image_tokens
from quire.engine.frontend.outputs import (
    OutputBuilder,
    PoolingOutput,
    PoolingRequestOutput,
    RequestOutput,
    RequestStateStats,
)
from quire.engine.frontend.pooling import Embedding, pooling_numbers, to_pooled_token_ids
from quire.engine.frontend.prompts import Prompt, off_the_loop, to_token_ids
from quire.engine.frontend.request import Request
from quire.engine.frontend.submission import check_length, check_prompt, numbers, samples
from quire.engine.frontend.unsupported import asked_for
from quire.engine.grammar.check import GrammarCheck, grammar_check
from quire.engine.image_options import checked_limits
from quire.engine.messages import NO_KEY, EngineInfo, KeyLimits, RateState, SampleSpec, TokenLogprobs
from quire.engine.model_config import ModelConfig
from quire.engine.pooling_params import PoolingParams
from quire.engine.sampling_params import SamplingParams
from quire.engine.tokenizers.tokenizer import Tokenizer, end_token_ids, load_tokenizer
from quire.engine.weights.locate import resolve_model


class Stream:
    """The updates of one accepted request. Leaving it early, in whatever way, aborts what is unfinished. The request's
    images are released with it."""

    def __init__(self, group: EngineGroup, request: Request, prompt: str | None, images: LoadedImages) -> None:
        self._group = group
        self._request = request
        self._images = images
        self.prompt = prompt
        self.prompt_token_ids = request.prompt_token_ids

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs | None] | None:
        """As Generation's."""
        return self._request.generation.prompt_logprobs

    @property
    def embedding(self) -> array[float]:
        """float32; whole before the only update of one that `submit_embedding` made."""
        assert isinstance(self._request.generation, Embedding)
        return self._request.generation.vector

    @property
    def rate(self) -> RateState | None:
        """Where its key stood with its limits a minute when the request was accepted."""
        return self._request.rate

    @property
    def started_at(self) -> float | None:
        """When a step first took it up (perf_counter); None while it waits."""
        return self._request.started_at

    @property
    def num_resumed(self) -> int:
        """Times that a new engine got it again."""
        return self._request.num_resumed

    def __aiter__(self) -> AsyncIterator[SampleUpdate]:
        return self

    async def __anext__(self) -> SampleUpdate:
        try:
            update = await self._request.next_update()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if update is None:
            raise StopAsyncIteration
        return update

    def abort(self) -> None:
        """End it, with a last update of each unfinished sample that says so."""
        self._request.cut_short()
        self._group.abort(self._request)

    async def aclose(self) -> None:
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        self._group.abort(self._request)
        self._images.release()


class AsyncEngineArgs(EngineArgs):
    """vLLM's name for the arguments of an engine in a process of its own; others of vLLM's only where they ask for
    nothing.

    Raises:
        ConfigError: arguments of vLLM's that this version does not implement, or of nobody's; all are named.
    """

    def __init__(self, **arguments: Any) -> None:
        known = asked_for(arguments)
        refuse_unknown(known)
        super().__init__(**known)


class AsyncLLMEngine:
    def __init__(self, args: EngineArgs) -> None:
        """Unless `connect`ed, engine processes are started when the first request needs them. From then on the object
        belongs to that request's event loop.

        Raises:
            ConfigError: the arguments or the model directory cannot be used.
        """
        self.args = args.checked()
        self.model_config: ModelConfig = resolve_model(args)
        self.tokenizer: Tokenizer | None = None
        if not args.skip_tokenizer_init:
            self.tokenizer = load_tokenizer(self.model_config, args.tokenizer)
            _ = self.tokenizer.control_tokens  # now, and not at the first chat, on the event loop
        self._template: ChatTemplate | None = None
        self._grammar_check: GrammarCheck | None = None  # made for the first request that has a grammar
        self._images: ImageLoader | None = None  # made when the first image comes
        self._process: EngineProcess | None = None
        self._group: EngineGroup | None = None
        self._started = asyncio.Lock()
        self._streams: dict[str, Stream | None] = {}  # by request_id; None until the engine accepted it
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None  # process and event loop that it belongs to
        self._aborted: set[str] = set()  # of those, which are to end as soon as it did

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> AsyncLLMEngine:
        return cls(args)

    @classmethod
    async def connect(cls, addresses: Sequence[str], args: EngineArgs, *, opened: bool = False) -> AsyncLLMEngine:
        """A front for the engines at `addresses`; returns at once, also while they still load or are away.

        `opened`: all of them were ready before, so that one is enough.
        """
        engine = cls(args)
        engine._require_home()
        engine._group = EngineGroup(addresses, prefix_caching=args.enable_prefix_caching, opened=opened)
        return engine

    # What the engines say of themselves

    @property
    def engines(self) -> Sequence[EngineClient]:
        """Each by itself: info, state, loading and status."""
        return self._group.clients if self._group else ()

    @property
    def info(self) -> EngineInfo | None:
        return self._group.info if self._group else None

    @property
    def state(self) -> str:
        """ "loading", "ready", "down", or "gone" for good; after the first time, ready while one engine is."""
        return self._group.state if self._group else "loading"

    @property
    def loading(self) -> tuple[str, float]:
        return self._group.loading if self._group else ("not started", 0.0)

    @property
    def load_eta_s(self) -> float | None:
        """How long the load's present phase may still take, where its speed is known."""
        return self._group.load_eta_s if self._group else None

    @property
    def silent_s(self) -> float:
        """How long a ready engine has said nothing; it has something to say every second."""
        return self._group.silent_s if self._group else 0.0

    @property
    def num_restarts(self) -> int:
        return self._group.num_restarts if self._group else 0

    @property
    def chat_template(self) -> ChatTemplate:
        """Raises InvalidRequestError where the model has none."""
        if self._template is None:
            self._template = load_chat_template(self.model_config, self.args.chat_template, self.tokenizer,
                                                allow_control_tokens=self.args.allow_control_tokens_in_messages)
        return self._template

    @property
    def takes_images(self) -> bool:
        return self.model_config.vision is not None and checked_limits(self.args.limit_mm_per_prompt) > 0

    def image_loader(self, shared_by: int = 1) -> ImageLoader:
        """What makes images ready for `submit`. `shared_by`: processes like this one that share the machine; the first
        call says it."""
        if self._images is None:
            self._images = ImageLoader(self.model_config, self.args, shared_by=shared_by)
        return self._images

    async def lose(self, place: int, error: EngineDeadError, *, after_kill: bool) -> None:
        """The engine there is gone for good, after all were ready. Its requests go on at another, or end with `error`
        where none is left."""
        assert self._group is not None, "connect() first"
        await self._group.lose(place, error, after_kill=after_kill, opened=True)

    async def watch(self) -> None:
        """Runs for as long as the connections do. Raises EngineDeadError when one broke: this object is of no use then.
        """
        assert self._group is not None, "connect() first"
        await self._group.watch()

    def require_info(self) -> EngineInfo:
        """`info`. Raises OverloadedError while the model loads for the first time, EngineDeadError if it never will."""
        assert self._group is not None, "connect() or generate() first"
        return self._group.require_info()

    # Requests

    async def submit(self, prompt: Prompt, params: SamplingParams, request_id: str, *, priority: int = 0,
                     key: KeyLimits = NO_KEY, cache_salt: str = "", queue_timeout_s: float = 0.0,
                     add_special_tokens: bool = True, clamp: bool = False, images: LoadedImages = NO_IMAGES) -> Stream:
        """Send a request; returns when the engine accepted it. `images` are as `images.load` gives them, one for each
        placeholder of the prompt; the stream releases them.

        Raises:
            InvalidRequestError: the request cannot be served (param names the field).
            OverloadedError: not now; retry_after_s says when.
            EngineDeadError: the engine is gone for good.
        """
        try:
            return await self._submit(prompt, params, request_id, images, add_special_tokens, clamp, priority=priority,
                                      key=key, cache_salt=cache_salt, queue_timeout_s=queue_timeout_s)
        except BaseException:
            images.release()
            raise

    async def _submit(self, prompt: Prompt, params: SamplingParams, request_id: str, images: LoadedImages,
                      add_special_tokens: bool, clamp: bool, **of_request: Any) -> Stream:
        group = self._group
        assert group is not None, "connect() or generate() first"
        info = group.require_info()
        check_length(prompt, params.max_tokens or 1, self.tokenizer, info.max_model_len)
        if _is_long(prompt):
            text, prompt_token_ids = await off_the_loop(to_token_ids, prompt, self.tokenizer, add_special_tokens,
                                                        info.max_model_len, params.max_tokens or 1)
        else:
            text, prompt_token_ids = to_token_ids(prompt, self.tokenizer, add_special_tokens)
        check_prompt(prompt_token_ids, info.vocab_size)
        of_images = num_image_tokens(images.images, self.model_config.vision)
        num_prompt = len(prompt_token_ids) - len(images.images) + of_images
        grammar = "" if params.structured_outputs is None else await off_the_loop(
            self._grammars(info).grammar, params.structured_outputs)
        with naming_image_tokens(of_images):  # before there is a list of so many
            sampling = numbers(params, num_prompt, max_model_len=info.max_model_len,
                               max_logprobs=info.max_logprobs, vocab_size=info.vocab_size,
                               clamp=clamp,
                               eos_token_ids=end_token_ids(self.model_config, self.tokenizer), tokenizer=self.tokenizer,
                               grammar=grammar)
        prompt_token_ids, media = expanded(prompt_token_ids, images.images, self.model_config.vision)
        generation = Generation(params, prompt_token_ids, self.tokenizer, params.n)
        request = Request(request_id, prompt_token_ids, sampling, samples(params, group.new_ids(params.n)), generation,
                          media=media, **of_request)
        await group.submit(request)
        return Stream(group, request, text, images)

    async def submit_embedding(self, prompt: Prompt, params: PoolingParams, request_id: str, *, priority: int = 0,
                               key: KeyLimits = NO_KEY, cache_salt: str = "", queue_timeout_s: float = 0.0,
                               add_special_tokens: bool = True) -> Stream:
        """As `submit`; the stream's only update tells that its `embedding` is there."""
        group = self._group
        assert group is not None, "connect() or encode() first"
        info = group.require_info()
        pooling = self.model_config.pooling
        sampling = pooling_numbers(params, pooling, self.model_config.hidden_size)
        if params.truncate_prompt_tokens is None:
            check_length(prompt, 0, self.tokenizer, info.max_model_len)
        arguments = prompt, params, self.tokenizer, info.max_model_len, add_special_tokens
        text, ids = await off_the_loop(to_pooled_token_ids, *arguments) if _is_long(prompt) else (
            to_pooled_token_ids(*arguments))
        check_prompt(ids, info.vocab_size)
        request = Request(request_id, ids, sampling, [SampleSpec(id, 0) for id in group.new_ids(1)],
                          Embedding(params, pooling), priority, key, cache_salt, queue_timeout_s)
        await group.submit(request)
        return Stream(group, request, text, NO_IMAGES)

    async def generate(self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: str = "", *,
                       prompt_text: str | None = None, lora_request: Any = None,
                       tokenization_kwargs: dict[str, Any] | None = None, trace_headers: Any = None, priority: int = 0,
                       data_parallel_rank: int | None = None) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of one request as they come, shaped by sampling_params.output_kind.

        Raises:
            InvalidRequestError, OverloadedError, EngineDeadError: as `submit`.
            MisuseError: it belongs to another event loop, or to the parent of this process.
        """
        self._require_home()
        unsupported("prompt_text", prompt_text)
        unsupported("lora_request", lora_request)
        unsupported("tokenization_kwargs", tokenization_kwargs, {})
        unsupported("trace_headers", trace_headers, {})
        unsupported("data_parallel_rank", data_parallel_rank)
        params = SamplingParams() if sampling_params is None else sampling_params
        if not isinstance(params, SamplingParams):
            raise InvalidRequestError(f"sampling_params must be SamplingParams, got {shown(params)}.",
                                      "sampling_params")
        async with self._named(request_id, priority) as (request_id, priority):
            metrics = RequestStateStats(arrival_time=time.time(), queued_ts=time.monotonic())
            images = await self._loaded(prompt)
            with naming_limits(self.args, self.model_config, self.info):
                stream = await self.submit(without_images(prompt), params, request_id, priority=priority, clamp=True,
                                           images=images)
            self._accepted(request_id, stream)
            builder = OutputBuilder(request_id, stream.prompt, stream.prompt_token_ids, params, self.tokenizer, metrics,
                                    stream.prompt_logprobs)
            async with contextlib.aclosing(stream):
                async for update in stream:
                    metrics.scheduled_ts = stream.started_at  # perf_counter, which Linux reads off the same clock
                    metrics.count(len(update.token_ids))
                    output = builder.push(update)
                    if output is not None:
                        yield output

    async def encode(self, prompt: Prompt, pooling_params: PoolingParams | None = None, request_id: str = "", *,
                     lora_request: Any = None, trace_headers: Any = None, priority: int = 0,
                     tokenization_kwargs: dict[str, Any] | None = None) -> AsyncGenerator[PoolingRequestOutput, None]:
        """The vector of one prompt, as the only output; nothing where it was aborted.

        Raises:
            InvalidRequestError, OverloadedError, EngineDeadError, MisuseError: as `generate`.
        """
        self._require_home()
        unsupported("lora_request", lora_request)
        unsupported("trace_headers", trace_headers, {})
        unsupported("tokenization_kwargs", tokenization_kwargs, {})
        params = PoolingParams() if pooling_params is None else pooling_params
        if not isinstance(params, PoolingParams):
            raise InvalidRequestError(f"pooling_params must be PoolingParams, got {shown(params)}.", "pooling_params")
        async with self._named(request_id, priority) as (request_id, priority):
            with naming_limits(self.args, self.model_config, self.info):
                stream = await self.submit_embedding(prompt, params, request_id, priority=priority)
            self._accepted(request_id, stream)
            async with contextlib.aclosing(stream):
                async for update in stream:
                    if update.finish_reason == "stop":
                        yield PoolingRequestOutput(request_id, PoolingOutput(stream.embedding.tolist()),
                                                   stream.prompt_token_ids, update.num_cached_tokens or 0)

    @contextlib.asynccontextmanager
    async def _named(self, request_id: str, priority: int) -> AsyncIterator[tuple[str, int]]:
        """A request's id, drawn where it has none, and its priority, both checked; inside, the engine is started and
        `abort` knows the id."""
        request_id = request_id or uuid.uuid4().hex
        # Of another type, the engine could not read them, and would never answer.
        priority = integer("priority", priority, -(2**31), 2**31 - 1)
        if not isinstance(request_id, str):
            raise InvalidRequestError(f"request_id must be text, got {shown(request_id)}.", "request_id")
        if request_id in self._streams:
            raise InvalidRequestError(f"request_id {request_id!r} is already running.", "request_id")
        self._streams[request_id] = None
        try:
            await self._ensure_started()
            yield request_id, priority
        finally:
            del self._streams[request_id]
            self._aborted.discard(request_id)

    async def _loaded(self, prompt: Prompt) -> LoadedImages:
        """The images beside a prompt."""
        sent = images_of(prompt)
        if not sent:
            return NO_IMAGES
        return await self.image_loader().load(sent, options_of(prompt))

    def _accepted(self, request_id: str, stream: Stream) -> None:
        self._streams[request_id] = stream
        if request_id in self._aborted:
            stream.abort()

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End a request of `generate`, or several. Its last output has what was produced and the finish_reason "abort".
        """
        self._require_home()
        for id in [request_id] if isinstance(request_id, str) else request_id:
            stream = self._streams.get(id)
            if stream is not None:
                stream.abort()
            elif id in self._streams:
                self._aborted.add(id)

    async def close(self) -> None:
        """End the connections, and the engine processes where this object started them."""
        if self._home is not None and self._home[0] != os.getpid():
            return  # they are the parent's
        if self._home is None or self._home[1] is asyncio.get_running_loop():  # those of a closed loop ended with it
            if self._group is not None:
                await self._group.close()
            if self._images is not None:
                await self._images.close()
        process, self._process = self._process, None  # a second call is nothing
        if process is not None:
            await asyncio.to_thread(process.stop)

    def _grammars(self, info: EngineInfo) -> GrammarCheck:
        if self._grammar_check is None:
            self._grammar_check = grammar_check(self.model_config, self.tokenizer, info.vocab_size)
        return self._grammar_check

    def _require_home(self) -> None:
        """Raises MisuseError where nothing that the engine says would ever arrive."""
        here = os.getpid(), asyncio.get_running_loop()
        if self._home is None or (self._group is None and not self._streams):
            self._home = here
        pid, loop = self._home
        if pid != here[0]:
            raise MisuseError(f"This AsyncLLMEngine was first used in process {pid}, from which this one was forked. "
                              "Make one in the child, and start it with multiprocessing's \"spawn\".")
        if loop is not here[1]:
            instead = ("That loop is closed, as each asyncio.run() has one of its own: keep to one asyncio.run(), or "
                       "make an AsyncLLMEngine in each." if loop.is_closed() else
                       "Send requests there (asyncio.run_coroutine_threadsafe), or make another one here.")
            raise MisuseError("An AsyncLLMEngine belongs to the event loop of its first request, and this is another. "
                              + instead)

    async def _ensure_started(self) -> None:
        async with self._started:
            if self._group is None:
                self._process = EngineProcess(self.args)
                self._group = EngineGroup(self._process.addresses, prefix_caching=self.args.enable_prefix_caching)
                self._process.watch(partial(_lose, asyncio.get_running_loop(), self._group))
            await self._group.wait_ready()


def _lose(loop: asyncio.AbstractEventLoop, group: EngineGroup, place: int, error: EngineDeadError,
          killed: bool) -> None:
    """From another thread. Nobody starts the engine again."""
    losing = group.lose(place, error, after_kill=killed)
    try:
        asyncio.run_coroutine_threadsafe(losing, loop)
    except RuntimeError:  # the loop is closed: nobody waits any more
        losing.close()


def _is_long(prompt: Prompt) -> bool:
    """Whether tokenizing would hold up the event loop."""
    text = prompt.get("prompt") if isinstance(prompt, dict) else prompt
    return isinstance(text, str) and len(text) > 4000
