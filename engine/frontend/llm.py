"""LLM: offline inference. The core runs in this process; the caller waits for the whole list."""

from __future__ import annotations

import dataclasses
import gc
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tqdm import tqdm

from quire.engine.arguments import integer, is_integer, listed, shown, unsupported
from quire.engine.before_torch import settle
from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError, EngineDeadError, InvalidRequestError, MisuseError
from quire.engine.frontend.beam_search import BeamSearchOutput, BeamSearchParams, beam_search_output, checked
from quire.engine.frontend.chat_template import RESERVED_VARIABLES, ChatTemplate, load_chat_template
from quire.engine.frontend.context_limit import naming_limits
from quire.engine.frontend.generation import Generation
from quire.engine.frontend.media.given import images_of, options_of, taken_apart, warn_unfilled, without_images
from quire.engine.frontend.media.loader import LoadedImages
from quire.engine.frontend.media.offline import OfflineImages
from quire.engine.frontend.media.placeholders import expanded, naming_image_tokens
from quire.engine.frontend.media.source import SentImage
from quire.engine.frontend.outputs import (
    EmbeddingBuilder,
    EmbeddingRequestOutput,
    OutputBuilder,
    PoolingOutput,
    PoolingRequestOutput,
    RequestOutput,
    RequestStateStats,
)
from quire.engine.frontend.pooling import Embedding, pooling_numbers, to_pooled_token_ids
from quire.engine.frontend.prompts import Prompt, to_conversations, to_token_ids
from quire.engine.frontend.submission import check_prompt, numbers, samples
from quire.engine.frontend.unsupported import asked_for
from quire.engine.grammar.check import GrammarCheck, grammar_check
from quire.engine.messages import Delta, Media, Rejected, SampleSpec, Submit
from quire.engine.pooling_params import PoolingParams
from quire.engine.sampling_params import RequestOutputKind, SamplingParams
from quire.engine.tokenizers.tokenizer import Tokenizer, end_token_ids, load_tokenizer
from quire.engine.weights.progress import reporter

if TYPE_CHECKING:
    from quire.engine.core import EngineCore

P = TypeVar("P")

_OWNER = "offline"


class LLM:
    """A model in this process.

    Args:
        model: directory, .gguf file, hub id, or the embedded model's name.
        kwargs: any field of `EngineArgs`; None leaves it as it is. Other arguments of vLLM's only where they ask for
            nothing.

    Raises:
        ConfigError: unknown arguments, or values that do not fit; all of them are named.
    """

    def __init__(self, model: str = EngineArgs.model, *, tokenizer: str | None = None, **kwargs: Any) -> None:
        self.args = EngineArgs.of({"model": model, "tokenizer": tokenizer, **asked_for(kwargs)})
        if self.args.data_parallel_size > 1:
            raise ConfigError(f"--data-parallel-size: {self.args.data_parallel_size} engines are more than the one "
                              "that LLM runs; use quire serve or AsyncLLMEngine, or several processes of one LLM each")
        settle()
        from quire.engine.assembly import assemble  # brings torch, which nobody pays for before an engine is built

        with reporter() as progress:
            self._core = assemble(self.args, progress, offline=True)
        self.model_config = self._core.config.model
        self.info = self._core.info
        self._tokenizer = None if self.args.skip_tokenizer_init else load_tokenizer(self.model_config, tokenizer)
        self._images = OfflineImages(self.model_config, self.args)
        self._template: ChatTemplate | None = None
        self._grammar_check: GrammarCheck | None = None  # made for the first request that has a grammar
        self._seeds = random.Random(self.args.seed)
        self._next_id = 0
        self._turn = threading.Lock()  # the engine serves one call; those of other threads wait
        self._calls = threading.local()  # .inside: whether this thread is in `generate`
        self._closing = False
        self._pid = os.getpid()

    def close(self) -> None:
        """Let go of the devices at once, rather than with the last reference. The object is of no use afterwards.

        Calls of `generate` that run in other threads end with EngineDeadError after their step in hand, and are waited
        for. In the middle of a call of this thread (a signal handler), the call closes it on its way out.
        """
        self._closing = True
        if os.getpid() == self._pid and not getattr(self._calls, "inside", False):  # a forked child holds no devices
            with self._turn:
                self._core.close()
                self._images.close()

    def get_tokenizer(self) -> Tokenizer:
        """Raises InvalidRequestError where the engine was built without one."""
        if self._tokenizer is None:
            raise InvalidRequestError("This engine was built with skip_tokenizer_init=True: it has no tokenizer.")
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends, on top of the built-in defaults."""
        if self.args.generation_config == "vllm":
            return SamplingParams()
        return SamplingParams(**self.model_config.generation_defaults)

    def generate(self, prompts: Prompt | Sequence[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] |
                 None = None, *, use_tqdm: bool = True, lora_request: Any = None,
                 priority: Sequence[int] | None = None, tokenization_kwargs: dict[str, Any] | None = None,
                 mm_processor_kwargs: dict[str, Any] | None = None) -> list[RequestOutput]:
        """Continue every prompt; outputs are in the order of the prompts.

        A prompt is text, a list of token ids, or a dict with "prompt" or "prompt_token_ids", beside which
        "multi_modal_data" may hold images (docs/images.md).

        Raises:
            InvalidRequestError: a prompt or its parameters cannot be served. Nothing was run, unless there are more
                images than have room at once.
            EngineDeadError: the engine was closed, before or meanwhile, or broke in an earlier call.
            MisuseError: this process was forked after the engine was built.
        """
        self._refuse_fork()
        unsupported("lora_request", lora_request)
        unsupported("tokenization_kwargs", tokenization_kwargs, {})
        wanted = _as_list(prompts)
        return self._generate(wanted, [images_of(prompt) for prompt in wanted], sampling_params, use_tqdm, priority,
                              mm_processor_kwargs)

    def _generate(self, wanted: list[Prompt], images: list[list[SentImage]],
                  sampling_params: SamplingParams | Sequence[SamplingParams] | None, use_tqdm: bool,
                  priority: Sequence[int] | None, mm_processor_kwargs: dict[str, Any] | None) -> list[RequestOutput]:
        """`images` are those of each prompt."""
        params = self._params_for(wanted, sampling_params)
        priorities = _priorities(priority, len(wanted))
        options = [options_of(prompt, mm_processor_kwargs) for prompt in wanted]
        outputs: list[RequestOutput] = []
        for part, loaded in self._images.batches(images, options):
            def prepare(run: _Run, part: slice = part, loaded: list[LoadedImages] = loaded) -> None:
                for prompt, of_prompt, own, rank in zip(wanted[part], loaded, params[part], priorities[part]):
                    text, ids = to_token_ids(without_images(prompt), self._tokenizer)
                    ids, media = expanded(ids, of_prompt.images, self.model_config.vision)
                    warn_unfilled(ids, media, self.model_config.vision)
                    run.prepare(str(self._new_id()), text, ids, own, rank, self._seeds.getrandbits(63),
                                self._grammar(own), media)

            outputs += self._run(prepare, use_tqdm)
        return outputs

    def embed(self, prompts: Prompt | Sequence[Prompt], *, pooling_params: PoolingParams | Sequence[PoolingParams] |
              None = None, use_tqdm: bool = True, lora_request: Any = None, priority: Sequence[int] | None = None,
              truncate_prompt_tokens: int | None = None, tokenization_kwargs: dict[str, Any] | None = None
              ) -> list[EmbeddingRequestOutput]:
        """The vector of every prompt; outputs are in the order of the prompts, which are as `generate` takes them.

        How hidden states become a vector is the model's to say (docs/embeddings.md). `truncate_prompt_tokens` stands
        for that field of all parameters.

        Raises:
            InvalidRequestError, EngineDeadError, MisuseError: as `generate`.
        """
        self._refuse_fork()
        unsupported("lora_request", lora_request)
        unsupported("tokenization_kwargs", tokenization_kwargs, {})
        wanted = _as_list(prompts)
        params = _for_each(wanted, "pooling_params", PoolingParams, pooling_params or PoolingParams())
        if truncate_prompt_tokens is not None:
            params = [dataclasses.replace(own, truncate_prompt_tokens=truncate_prompt_tokens) for own in params]
        priorities = _priorities(priority, len(wanted))

        def prepare(run: _Run) -> None:
            for prompt, own, rank in zip(wanted, params, priorities):
                _, ids = to_pooled_token_ids(prompt, own, self._tokenizer, self.info.max_model_len)
                run.prepare_embedding(str(self._new_id()), ids, own, rank)

        return cast(list[EmbeddingRequestOutput], self._run(prepare, use_tqdm, "Embedding"))

    def encode(self, prompts: Prompt | Sequence[Prompt],
               pooling_params: PoolingParams | Sequence[PoolingParams] | None = None, *, use_tqdm: bool = True,
               lora_request: Any = None, pooling_task: str | None = None,
               tokenization_kwargs: dict[str, Any] | None = None) -> list[PoolingRequestOutput]:
        """As `embed`, under its more general name in vLLM, of whose tasks there is "embed" alone."""
        unsupported("pooling_task", pooling_task, "embed")
        found = self.embed(prompts, pooling_params=pooling_params, use_tqdm=use_tqdm, lora_request=lora_request,
                           tokenization_kwargs=tokenization_kwargs)
        return [PoolingRequestOutput(one.request_id, PoolingOutput(one.outputs.embedding), one.prompt_token_ids,
                                     one.num_cached_tokens) for one in found]

    def _run(self, prepare: Callable[[_Run], None], use_tqdm: bool, desc: str = "Generating") -> list[Any]:
        """The outputs of the requests that `prepare` enters, once all are done."""
        with self._own_turn(), _undisturbed(), _Interrupts() as interrupts:
            if self._closing or not self._core.is_sound:
                raise EngineDeadError("This LLM was closed, or a step of an earlier call ended in its middle; close it "
                                      "and build another.")
            run = _Run(self._core, self._tokenizer)
            with naming_limits(self.args, self.model_config, self.info):
                prepare(run)
            return run.finish(use_tqdm, partial(self._heed, interrupts), desc)

    def _refuse_fork(self) -> None:
        if os.getpid() != self._pid:
            raise MisuseError(f"This LLM was built in process {self._pid}; a forked child has neither its threads nor "
                              "its devices. Build one in the child, and start it with multiprocessing's \"spawn\".")

    def beam_search(self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams, lora_request: Any = None,
                    use_tqdm: bool = False, concurrency_limit: int | None = None) -> list[BeamSearchOutput]:
        """The likeliest sequences of each prompt, by transformers' rules; at most `concurrency_limit` prompts at once.

        Raises what `generate` raises.
        """
        sampling = checked(params).sampling_params()
        wanted = _as_list(prompts)
        at_once = len(wanted) if concurrency_limit is None else integer("concurrency_limit", concurrency_limit, 1,
                                                                        2**31 - 1)
        ends = end_token_ids(self.model_config, self._tokenizer)
        found = []
        for first in range(0, len(wanted), max(at_once, 1)):
            outputs = self.generate(wanted[first:first + at_once], sampling, use_tqdm=use_tqdm,
                                    lora_request=lora_request)
            found += [beam_search_output(output, params, self._tokenizer, ends) for output in outputs]
        return found

    def _grammar(self, params: SamplingParams) -> str:
        if params.structured_outputs is None:
            return ""
        if self._grammar_check is None:
            self._grammar_check = grammar_check(self.model_config, self._tokenizer, self.info.vocab_size)
        return self._grammar_check.grammar(params.structured_outputs)

    @contextmanager
    def _own_turn(self) -> Iterator[None]:
        self._calls.inside = True
        try:
            with self._turn:
                yield
        finally:
            self._calls.inside = False
            if self._closing:
                self.close()

    def _heed(self, interrupts: _Interrupts) -> None:
        interrupts.heed()
        if self._closing:
            raise EngineDeadError("This LLM was closed while it generated.")

    def chat(self, messages: list[dict[str, Any]] | list[list[dict[str, Any]]],
             sampling_params: SamplingParams | Sequence[SamplingParams] | None = None, use_tqdm: bool = True,
             lora_request: Any = None, chat_template: str | None = None, chat_template_content_format: str = "auto",
             add_generation_prompt: bool = True, continue_final_message: bool = False,
             tools: list[dict[str, Any]] | None = None, chat_template_kwargs: dict[str, Any] | None = None, *,
             tokenization_kwargs: dict[str, Any] | None = None,
             mm_processor_kwargs: dict[str, Any] | None = None) -> list[RequestOutput]:
        """Answer one conversation, or a list of them.

        Raises:
            ConfigError: `chat_template` is neither a name, a file nor a template.
            InvalidRequestError: the messages or an argument cannot be served; nothing was run.
        """
        self._refuse_fork()
        unsupported("chat_template_content_format", chat_template_content_format, "auto")
        unsupported("lora_request", lora_request)
        unsupported("tokenization_kwargs", tokenization_kwargs, {})
        conversations = to_conversations(messages)
        variables = _template_variables(chat_template_kwargs)
        template = self._chat_template(chat_template)
        tokenizer = self.get_tokenizer()
        prompts: list[Prompt] = []
        images = []
        for i, sent in enumerate(conversations):
            where = "messages" if conversations[0] is messages else f"messages[{i}]"
            conversation, own_images = taken_apart(sent, where)
            images.append(own_images)
            text = template.render(conversation, tools, add_generation_prompt=add_generation_prompt,
                                   continue_final_message=continue_final_message, **variables)
            prompts.append({"prompt": str(text), "prompt_token_ids": tokenizer.encode(text, False)})
        return self._generate(prompts, images, sampling_params, use_tqdm, None, mm_processor_kwargs)

    def _chat_template(self, override: str | None) -> ChatTemplate:
        if override is not None:
            if not isinstance(override, str):
                raise InvalidRequestError(f"chat_template must be a name, a file or a template, got {shown(override)}.",
                                          "chat_template")
            return self._loaded_template(override)
        if self._template is None:
            self._template = self._loaded_template(self.args.chat_template)
        return self._template

    def _loaded_template(self, override: str | None) -> ChatTemplate:
        return load_chat_template(self.model_config, override, self._tokenizer,
                                  allow_control_tokens=self.args.allow_control_tokens_in_messages)

    def _params_for(self, prompts: list[Prompt],
                    given: SamplingParams | Sequence[SamplingParams] | None) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        return _for_each(prompts, "sampling_params", SamplingParams, given)

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Raises InvalidRequestError for what is neither a prompt nor some."""
    if isinstance(prompts, (str, bytes, dict)):
        return [prompts]  # bytes are no prompt, but nor are they a list of numbers
    try:
        members: list[Any] = list(prompts)
    except TypeError:
        raise InvalidRequestError(f"prompts must be a prompt or a list of them; got {type(prompts).__name__}.",
                                  "prompts") from None
    return [members] if members and all(map(is_integer, members)) else members


def _for_each(prompts: list[Prompt], name: str, kind: type[P], given: P | Sequence[P]) -> list[P]:
    """The parameters of each prompt, where one stands for all or there are as many as prompts."""
    if isinstance(given, kind):
        return [given] * len(prompts)
    if not isinstance(given, Sequence) or not all(isinstance(one, kind) for one in given):
        elsewhere = "; LLM.beam_search takes those" if isinstance(given, BeamSearchParams) else ""
        raise InvalidRequestError(
            f"{name} must be {kind.__name__} or a list of them, got {type(given).__name__}{elsewhere}.", name)
    if len(given) != len(prompts):
        raise InvalidRequestError(f"There are {len(prompts)} prompts and {len(given)} {name}.", name)
    return list(given)


def _priorities(given: Sequence[int] | None, num_prompts: int) -> list[int]:
    if given is None:
        return [0] * num_prompts
    priorities = listed("priority", given, "a list of integers, one for each prompt")
    if len(priorities) != num_prompts:
        raise InvalidRequestError(f"priority has {len(priorities)} entries for {num_prompts} prompts.", "priority")
    return [integer("priority", priority, -(2**31), 2**31 - 1) for priority in priorities]


def _template_variables(given: Any) -> dict[str, Any]:
    """`chat_template_kwargs`, which may set neither what `chat` has arguments for nor what is no name."""
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise InvalidRequestError(f"chat_template_kwargs must be a dict of names and values, got {shown(given)}.",
                                  "chat_template_kwargs")
    taken = given.keys() & RESERVED_VARIABLES
    if taken:
        raise InvalidRequestError(f"chat_template_kwargs may not set {', '.join(sorted(taken))}.",
                                  "chat_template_kwargs")
    return given


class _Run:
    """One call of generate or embed: its requests, driven to their ends."""

    def __init__(self, core: EngineCore, tokenizer: Tokenizer | None) -> None:
        self._core = core
        self._tokenizer = tokenizer
        self._submits: list[Submit] = []
        self._generations: list[Generation | Embedding] = []
        self._builders: list[OutputBuilder | EmbeddingBuilder] = []
        self._metrics: list[RequestStateStats] = []
        self._outputs: list[RequestOutput | EmbeddingRequestOutput | None] = []
        self._place: dict[int, tuple[int, int]] = {}  # sample id -> (request, sample index)

    def prepare(self, request_id: str, text: str | None, ids: list[int], params: SamplingParams, priority: int,
                seed: int, grammar: str, media: list[Media]) -> None:
        """Check one request and remember it; nothing runs before all of them passed."""
        info = self._core.info
        params = dataclasses.replace(params, output_kind=RequestOutputKind.FINAL_ONLY)
        check_prompt(ids, info.vocab_size)
        with naming_image_tokens(sum(image.num_tokens for image in media)):
            sampling = numbers(params, len(ids), max_model_len=info.max_model_len, max_logprobs=info.max_logprobs,
                               vocab_size=info.vocab_size, clamp=True,
                               eos_token_ids=end_token_ids(self._core.config.model, self._tokenizer),
                               tokenizer=self._tokenizer, grammar=grammar)
        place, first = len(self._submits), len(self._place)
        sample_ids = range(first, first + params.n)
        self._place.update({id: (place, index) for index, id in enumerate(sample_ids)})
        self._submits.append(Submit(info.instance, request_id, ids, sampling, samples(params, sample_ids, seed),
                                    priority, media=media))
        tokenizer = self._tokenizer if params.detokenize else None
        metrics = RequestStateStats(arrival_time=time.time(), queued_ts=time.monotonic())
        generation = Generation(params, ids, tokenizer, params.n)
        self._generations.append(generation)
        self._builders.append(OutputBuilder(request_id, text, ids, params, tokenizer, metrics,
                                            generation.prompt_logprobs))
        self._metrics.append(metrics)
        self._outputs.append(None)

    def prepare_embedding(self, request_id: str, ids: list[int], params: PoolingParams, priority: int) -> None:
        """As `prepare`."""
        info, model = self._core.info, self._core.config.model
        check_prompt(ids, info.vocab_size)
        sampling = pooling_numbers(params, model.pooling, model.hidden_size)
        id = len(self._place)
        self._place[id] = len(self._submits), 0
        self._submits.append(Submit(info.instance, request_id, ids, sampling, [SampleSpec(id, 0)], priority))
        embedding = Embedding(params, model.pooling)
        self._generations.append(embedding)
        self._builders.append(EmbeddingBuilder(request_id, ids, embedding))
        self._metrics.append(RequestStateStats())
        self._outputs.append(None)

    def finish(self, use_tqdm: bool, heed: Callable[[], None], desc: str
               ) -> list[RequestOutput | EmbeddingRequestOutput]:
        """`heed` is called between two steps, and raises what ends the call."""
        core = self._core
        try:
            for submit in self._submits:
                answer = core.submit(_OWNER, submit)
                if isinstance(answer, Rejected):
                    raise InvalidRequestError(answer.message, answer.param or None)
            with tqdm(total=len(self._submits), desc=desc, unit="request", disable=not use_tqdm,
                      dynamic_ncols=True) as bar:
                while core.has_work:
                    heed()
                    for _, delta in core.step():
                        bar.update(self._take(delta))
        except BaseException:
            core.abort_owner(_OWNER)  # Ctrl-C between two steps: the engine is ready for the next call
            raise
        assert all(output is not None for output in self._outputs)
        return [output for output in self._outputs if output is not None]

    def _take(self, delta: Delta) -> int:
        """How many requests this delta finished (0 or 1)."""
        place, index = self._place[delta.id]
        generation = self._generations[place]
        if delta.prompt_logprobs is None:
            self._metrics[place].count(len(delta.token_ids))
        update = generation.push(index, delta)
        if update is None:
            return 0
        if update.finish_reason is not None and not delta.finish_reason:  # a stop string ended it
            self._core.abort(_OWNER, [delta.id])
        output = self._builders[place].push(update)
        if output is not None:
            self._outputs[place] = output
        return int(generation.finished)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What is here stays for as long: looking through it for garbage would halt steps for 0.1 s each time.

    Afterwards nothing is frozen, also not what somebody else froze before.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Interrupts:
    """Holds a Ctrl-C back until somebody heeds it: in the middle of a step it would break the engine. A second one, of
    somebody who waits for a step that does not end, is not held back."""

    def __init__(self) -> None:
        self._pressed = False
        self._before: Any = None

    def __enter__(self) -> _Interrupts:
        # Handlers are the main thread's; one that is not Python's own has its own ideas.
        if (threading.current_thread() is threading.main_thread()
                and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        self.heed()

    def heed(self) -> None:
        if self._pressed:
            self._pressed = False
            raise KeyboardInterrupt

    def _press(self, *_: object) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True
