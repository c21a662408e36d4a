"""How a conversation reaches the engine, for every API that takes one: its messages become the model's prompt, its
tools and its form a grammar, and each sample of the reply gets the parser that the prompt calls for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from starlette.requests import Request

from quire.app.background import in_background
from quire.app.exchange import Exchange
from quire.app.replies.choice import Choice
from quire.app.schemas.body import unknown_of
from quire.app.schemas.media import SentImages
from quire.app.schemas.tools import ToolChoice
from quire.app.service import Service, key_of, service_of
from quire.engine.errors import InvalidRequestError, OverloadedError
from quire.engine.frontend.media.errors import RETRY_S
from quire.engine.frontend.media.loader import NO_IMAGES, ImageLoader, LoadedImages
from quire.engine.image_options import checked_options
from quire.engine.sampling_params import SamplingParams

P = ParamSpec("P")
T = TypeVar("T")

_LONG_CONVERSATION = 4000  # weight


async def by_weight(weight: int, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `job` makes of a conversation: in the background where that takes long. `weight`: the conversation's bytes
    in JSON, names at 20 each."""
    return await in_background(job, *args, **kwargs) if weight > _LONG_CONVERSATION else job(*args, **kwargs)


@contextmanager
def named_as_sent(max_tokens: str, conversation: str = "") -> Iterator[None]:
    """What the engine says of max_tokens is about the field `max_tokens` of the request; what it says of prompt or
    messages, about `conversation` where that has another name."""
    try:
        yield
    except InvalidRequestError as error:
        sent = {"max_tokens": max_tokens} | ({"messages": conversation, "prompt": conversation} if conversation else {})
        message = re.sub(r"\bmax_tokens\b", max_tokens, error.message)
        raise InvalidRequestError(message, sent.get(error.param or "", error.param)) from None


def prompt_of(service: Service, messages: list[dict[str, Any]], choice: ToolChoice, *, variables: dict[str, Any],
              add_generation_prompt: bool, continue_final_message: bool = False) -> str:
    """The text of `messages`, which are as chat templates take them, with the tools. Raises InvalidRequestError."""
    told = service.reply_style.conversation(messages, choice.tools)
    continued = {"continue_final_message": True} if continue_final_message else {}
    return service.engine.chat_template.render(told, tools=choice.tools or None,
                                               add_generation_prompt=add_generation_prompt, **continued, **variables)


def images_to_be_sent(request: Request, options: Mapping[str, Any] | None = None, cache_salt: str = "") -> SentImages:
    """To be filled by the messages of `request`; `options` are its mm_processor_kwargs."""
    service = service_of(request)
    return SentImages(service.engine.takes_images, unknown_of(request), checked_options(options),
                      service.prefix_salt(key_of(request), cache_salt))


async def loaded_images(service: Service, sent: SentImages) -> LoadedImages:
    """Ready for the engine; to be released. What was sent of them is let go of. Raises InvalidRequestError,
    OverloadedError."""
    if not sent.images:
        return NO_IMAGES
    images, sent.images = sent.images, []
    return await _image_loader(service).load(images, sent.options, sent.salt)


def _image_loader(service: Service) -> ImageLoader:
    try:
        return service.engine.image_loader(shared_by=service.settings.serve.num_http_workers)
    except OSError as error:  # there is no room for a directory
        raise OverloadedError(f"This server cannot keep images now: {error.strerror}.", RETRY_S,
                              reason="image_memory") from None


async def submit_conversation(service: Service, exchange: Exchange, messages: list[dict[str, Any]], choice: ToolChoice,
                              params: SamplingParams, *, variables: dict[str, Any], add_generation_prompt: bool,
                              priority: int, cache_salt: str, add_special_tokens: bool, weight: int,
                              continue_final_message: bool = False, thinking_budget: int | None = None,
                              clamp: bool = False, images: SentImages) -> list[Choice]:
    """The choices of the reply to `messages`, which are as chat templates take them, with `images` in the places of
    their marks: one for each sample. Lets go of what was sent of the images once they are loaded.

    `params` get the form of the whole reply in place of that of its content, and the tokens that parsers must see.
    `variables` are the template's, `weight` is as in `by_weight`, `clamp` as in `Exchange.submit`; `thinking_budget` is
    the most tokens that are thought.

    Raises:
        InvalidRequestError: the template refuses the messages, an image cannot be taken, or the engine refuses the
            request.
        ApiError: as Exchange.submit.
    """
    style = service.reply_style
    prompt = await by_weight(weight, prompt_of, service, messages, choice, variables=variables,
                             add_generation_prompt=add_generation_prompt,
                             continue_final_message=continue_final_message)
    params.structured_outputs = style.wanted_form(choice, params.structured_outputs, prompt, thinking_budget)
    params.shown_token_ids = style.shown_ids(choice, service.tokenizer)
    loaded = await loaded_images(service, images)
    with service.naming_limits():
        await exchange.submit(prompt, params, priority=priority, cache_salt=cache_salt,
                              add_special_tokens=add_special_tokens, clamp=clamp, images=loaded)
    return [Choice(style.parser(choice, prompt), choice) for _ in range(params.n)]
