"""Where the images of a prompt stand among its tokens: each has one placeholder there, which becomes as many as the
tower has features for it.

Placeholders are known by their token id alone. Text of messages cannot make one (`tokenizers.control_tokens`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from quire.engine.errors import ContextLengthError, InvalidRequestError
from quire.engine.frontend.media.loader import LoadedImage
from quire.engine.messages import Media
from quire.engine.model_facts.vision import VisionFacts


def expanded(token_ids: list[int], images: Sequence[LoadedImage], vision: VisionFacts | None
             ) -> tuple[list[int], list[Media]]:
    """The prompt with room for `images`, and these with their places in it. Without images it stays as it is: a
    placeholder in it is a token like any other, of which the model makes what it will.

    Raises:
        InvalidRequestError: it has not as many placeholders as there are images.
    """
    if not images:
        return token_ids, []
    assert vision is not None, "images are loaded for models that take them"
    places = [place for place, id in enumerate(token_ids) if id == vision.image_token_id]
    if len(places) != len(images):
        raise InvalidRequestError(
            f"The prompt has {_count(len(places), 'placeholder')} for images (token {vision.image_token_id}), and "
            f"{_count(len(images), 'image')} came with it; each image needs one placeholder.", "prompt")
    found: list[int] = []
    media: list[Media] = []
    end = 0
    for place, image in zip(places, images):
        found += token_ids[end:place]
        num_tokens = vision.num_tokens(image.grid)
        media.append(Media(image.digest, len(found), num_tokens, image.grid, image.path))
        found += [vision.image_token_id] * num_tokens
        end = place + 1
    return found + token_ids[end:], media


def num_image_tokens(images: Sequence[LoadedImage], vision: VisionFacts | None) -> int:
    """How many tokens of the prompt will be theirs."""
    return sum(vision.num_tokens(image.grid) for image in images) if vision is not None else 0


@contextmanager
def naming_image_tokens(num_tokens: int) -> Iterator[None]:
    """What is refused inside as too long says how much of it is images."""
    try:
        yield
    except ContextLengthError as error:
        raise error.of_images(num_tokens) from None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
