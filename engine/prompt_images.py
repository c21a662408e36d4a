"""The images of a submission, checked, with their files open: what may be wrong with them is found out before they run.

Called by the core at the door.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from typing import NamedTuple

from quire.engine.config import EngineConfig
from quire.engine.errors import InvalidRequestError, OverloadedError
from quire.engine.messages import Media, Submit
from quire.engine.model_facts.vision import Grid, VisionFacts

_ITEM_BYTES = 4  # float32
_RETRY_AFTER_S = 1.0
_SPARE_FILES = 64  # that images leave to all else: a step that could not open one would be the engine's end


class PixelFile:
    """A file that stays readable, also where its name is gone, as long as anybody refers to it."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: str, num_bytes: int) -> None:
        """Raises OSError where it cannot be opened, ValueError where it is no file of so many bytes."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # which no pipe holds up
        if self._fd >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_FILES:  # numbers are given from 0 on
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size != num_bytes:
            raise ValueError(f"{found.st_size} bytes, not the {num_bytes} that its grid has")
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"  # for all processes of this user

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


class Image(NamedTuple):
    """An image of a prompt. Its tokens are first to before end."""

    first: int
    end: int
    digest: bytes
    grid: Grid
    file: PixelFile

    @property
    def num_tokens(self) -> int:
        return self.end - self.first


def open_images(message: Submit, config: EngineConfig) -> list[Image]:
    """
    Raises:
        InvalidRequestError: the model takes no images, one is too large, or it is not what it should be.
        OverloadedError: no more files can be open at once.
    """
    vision = config.model.vision
    if vision is None:
        raise InvalidRequestError(f"The model {config.args.model} takes no images.", "media")
    if config.args.distributed_executor_backend == "ray":
        raise InvalidRequestError("Images are not supported by an engine whose ranks are a Ray cluster's "
                                  "(--distributed-executor-backend ray): they share no memory.", "media")
    images: list[Image] = []
    files: dict[str, PixelFile] = {}  # a prompt may have an image more than once
    for number, media in enumerate(message.media, 1):
        _refuse_misplaced(media, number, images[-1].end if images else 0, len(message.prompt_token_ids), vision)
        if media.num_tokens > config.encoder_tokens:
            raise InvalidRequestError(
                f"Image {number} becomes {media.num_tokens} tokens, and this server takes images of at most "
                f"{config.encoder_tokens}; send a smaller one, or start the server with more "
                "(--max-num-batched-tokens).", "media")
        if media.path not in files:
            files[media.path] = _opened(media, number, vision)
        images.append(Image(media.first, media.first + media.num_tokens, media.digest, media.grid, files[media.path]))
    return images


def _refuse_misplaced(media: Media, number: int, earliest: int, num_prompt_tokens: int, vision: VisionFacts) -> None:
    t, h, w = media.grid
    merge = vision.merge_size
    if t != 1:
        raise InvalidRequestError(f"Image {number} has {t} frames; of a video, each is to be an image of its own.",
                                  "media")
    if h < merge or w < merge or h % merge or w % merge or media.num_tokens != vision.num_tokens(media.grid):
        raise InvalidRequestError(f"Image {number} of {h} * {w} patches does not make {media.num_tokens} tokens: "
                                  f"{merge} * {merge} patches make one.", "media")
    if media.first < earliest or media.first + media.num_tokens > num_prompt_tokens:
        raise InvalidRequestError(f"Image {number} is to be at tokens {media.first} to "
                                  f"{media.first + media.num_tokens - 1}; they must come behind the image before it, "
                                  f"and be among the prompt's {num_prompt_tokens}.", "media")


def _opened(media: Media, number: int, vision: VisionFacts) -> PixelFile:
    t, h, w = media.grid
    try:
        return PixelFile(media.path, t * h * w * vision.patch_values * _ITEM_BYTES)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise OverloadedError("Too many images wait in the engine, each with an open file.",
                                  _RETRY_AFTER_S, reason="queue_requests") from error
        why = error.strerror if isinstance(error, OSError) else error
        raise InvalidRequestError(f"Image {number} cannot be read: {why}.", "media") from error
