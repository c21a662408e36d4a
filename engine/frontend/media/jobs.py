"""What is said between the pool and its processes: msgpack, each message behind its length (4 bytes, big end first).

A process is told `Setup`, and says `Hello` or `Broken` once. Then, of each `Job`, it answers `Size`, is told `Go` or
not, and answers `Done`; or it answers `Refused` instead, at once or after `Go`.
"""

from __future__ import annotations

import struct
from typing import Annotated

import msgspec

LENGTH = struct.Struct(">I")
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Setup(msgspec.Struct, array_like=True, frozen=True):
    """The first word to a process."""

    model: str  # the directory with the processor's configuration
    max_pixels: int  # of an image as it is sent
    options: dict[str, object]  # of the processor, over those of its configuration


class Job(msgspec.Struct, array_like=True, frozen=True):
    data: bytes  # the image's file; or its pixels, with `size`
    size: tuple[int, int] | None  # width and height of raw RGB pixels
    options: dict[str, object]  # of the processor, for this image
    most_pixels: int | None  # that the model is to see, if that is less than the options say
    path: str  # of the file to write


class Go(msgspec.Struct, array_like=True, tag="go", frozen=True):
    go: bool


class Hello(msgspec.Struct, array_like=True, tag="hello", frozen=True):
    """The processor is loaded."""


class Broken(msgspec.Struct, array_like=True, tag="broken", frozen=True):
    reason: str


class Size(msgspec.Struct, array_like=True, tag="size", frozen=True):
    num_bytes: int  # that the file would have


class Refused(msgspec.Struct, array_like=True, tag="refused", frozen=True):
    reason: str
    is_full: bool = False  # there was no room for the file: not the image's fault


class Done(msgspec.Struct, array_like=True, tag="done", frozen=True):
    digest: bytes
    grid: tuple[Positive, Positive, Positive]  # (t, h, w) in patches


Answer = Hello | Broken | Size | Refused | Done
