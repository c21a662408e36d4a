"""Images as programs pass them: beside a prompt as `multi_modal_data={"image": ...}`, of Pillow's or arrays, one or a
list; and as parts of messages, by URL.

Called by `LLM` and `AsyncLLMEngine`; over HTTP images come as `app.schemas.media` has them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quire.engine.arguments import shown
from quire.engine.errors import InvalidRequestError
from quire.engine.frontend.chat_template import IMAGE_PART
from quire.engine.frontend.media.errors import BadImageError
from quire.engine.frontend.media.source import RawImage, SentImage
from quire.engine.image_options import checked_options
from quire.engine.messages import Media
from quire.engine.model_facts.vision import VisionFacts

if TYPE_CHECKING:
    from quire.engine.frontend.prompts import Prompt

_IMAGE_PARTS = ("image_url", "image", "image_pil")  # each with the field of its name


def images_of(prompt: Prompt) -> list[SentImage]:
    """Those beside a prompt, in order.

    Raises:
        InvalidRequestError: there are media that are no images, or images of an unknown form.
    """
    data: Any = prompt.get("multi_modal_data") if isinstance(prompt, dict) else None
    if data is None:
        return []
    if not isinstance(data, Mapping):
        raise InvalidRequestError(f"multi_modal_data must be a dict such as {{'image': image}}, got {shown(data)}.",
                                  "multi_modal_data")
    others = [kind for kind, value in data.items()
              if kind != "image" and value is not None and not (isinstance(value, (list, dict)) and not value)]
    if others:
        raise InvalidRequestError(f"multi_modal_data holds {shown(others)}; this version takes 'image' only.",
                                  "multi_modal_data")
    found = data.get("image")
    if found is None:
        return []
    several = found if isinstance(found, (list, tuple)) else [found]
    return [SentImage(f"multi_modal_data['image'][{i}]" if len(several) > 1 else "multi_modal_data['image']",
                      _raw(image)) for i, image in enumerate(several)]


def without_images(prompt: Prompt) -> Prompt:
    """The prompt that `images_of` has looked at, without them."""
    if isinstance(prompt, dict):
        return {name: value for name, value in prompt.items()  # type: ignore[return-value]
                if name not in ("multi_modal_data", "mm_processor_kwargs")}
    return prompt


def options_of(prompt: Prompt, of_call: Any = None) -> dict[str, int]:
    """Of the image processor, for the prompt's images: the prompt's own before those of the call."""
    own: Any = prompt.get("mm_processor_kwargs") if isinstance(prompt, dict) else None
    return {**checked_options(of_call), **checked_options(own)}


def warn_unfilled(token_ids: list[int], media: list[Media], vision: VisionFacts | None) -> None:
    """A program that forgot its image hears so; the prompt is run, as vLLM runs it."""
    if vision is not None and not media and vision.image_token_id in token_ids:
        warnings.warn("A prompt has a placeholder for an image, and no image came with it: the model sees nothing "
                      "there, and what it says of an image is made up. Pass the image as "
                      "{'prompt': ..., 'multi_modal_data': {'image': image}}.", stacklevel=2)


def taken_apart(messages: list[dict[str, Any]], where: str) -> tuple[list[dict[str, Any]], list[SentImage]]:
    """A conversation as chat templates take it, with a mark in place of each image, and the images.

    Raises:
        InvalidRequestError: a part has no known form.
    """
    images: list[SentImage] = []
    marked = [_marked(message, f"{where}[{i}]", images) for i, message in enumerate(messages)]
    return marked, images


def _marked(message: dict[str, Any], where: str, images: list[SentImage]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    marked = []
    for i, part in enumerate(content):
        is_image = isinstance(part, dict) and part.get("type") in _IMAGE_PARTS
        if is_image:
            images.append(_image_of(part, f"{where}['content'][{i}]"))
        marked.append(IMAGE_PART if is_image else part)  # what else there is, is the template's business
    return {**message, "content": marked}


def _image_of(part: dict[str, Any], where: str) -> SentImage:
    kind = part["type"]
    sent = part.get(kind)
    if kind == "image_url" and isinstance(sent, dict):
        sent = sent.get("url")
    if sent is None or (kind == "image_url" and not isinstance(sent, str)):
        wanted = "a URL, or a dict with 'url'" if kind == "image_url" else "an image"
        raise InvalidRequestError(f"{where}.{kind} must be {wanted}; got {shown(part.get(kind))}.", "messages")
    return SentImage(where, sent if isinstance(sent, str) else _raw(sent))


def _raw(image: Any) -> RawImage:
    pillow = sys.modules.get("PIL.Image")  # without it, nobody has such an image
    if pillow is not None and isinstance(image, pillow.Image):
        from quire.engine.frontend.media.decode import decoded  # brings Pillow, which is here by now

        try:
            rgb = decoded(image)
        except BadImageError as error:
            raise InvalidRequestError(f"An image of multi_modal_data cannot be taken: {error}.",
                                      "multi_modal_data") from None
        return RawImage(rgb.width, rgb.height, rgb.tobytes())
    import numpy as np  # an HTTP worker never comes here, and does without

    try:
        pixels = np.asarray(image)
    except Exception:  # whatever an object does that claims to be an array
        pixels = np.empty(0)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InvalidRequestError(
            "An image of multi_modal_data must be one of Pillow's, or an array of uint8 with the shape [height, width, "
            f"3]; got {type(image).__name__}{f' of {pixels.dtype} {list(pixels.shape)}' if pixels.size else ''}.",
            "multi_modal_data")
    return RawImage(pixels.shape[1], pixels.shape[0], np.ascontiguousarray(pixels).tobytes())
