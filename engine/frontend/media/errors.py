"""Why an image cannot be taken, before it is known which part of the request it is."""

from __future__ import annotations

from quire.engine.errors import OverloadedError, QuireError

RETRY_S = 1.0


class BadImageError(QuireError):
    """The image can never be taken as it was sent. The message is a clause for the client, with "it" for the image."""


class ImageServiceError(QuireError):
    """Images cannot be processed on this server, whichever they are; the message says why, to whoever runs it."""


def no_room() -> OverloadedError:
    return OverloadedError("The shared memory for images is full (--image-memory-bytes). Please try again.", RETRY_S,
                           reason="image_memory")
