"""A process of the pool: `python -m quire.engine.frontend.media.process`, with a socket as its standard input.

Decoders are where strangers' bytes do harm, so they run here, where there is nothing to steal and where a limit on
memory and a kill from outside hurt one image alone. Ends with its parent.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
from typing import TYPE_CHECKING

import msgspec

from quire.engine.frontend.media.errors import BadImageError
from quire.engine.frontend.media.jobs import LENGTH, Answer, Broken, Done, Go, Hello, Job, Refused, Setup, Size
from quire.engine.lifeline import die_with_parent

if TYPE_CHECKING:
    from PIL import Image

    from quire.engine.frontend.media.processor import Processor

_MEMORY_BYTES = 4 * 2**30  # of addresses, beyond which a decoder gets no more
_NOT_PROCESSED = "it cannot be processed"
_encode = msgspec.msgpack.encode


class Channel:
    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def say(self, answer: Answer) -> None:
        frame = _encode(answer)
        self._end.sendall(LENGTH.pack(len(frame)) + frame)

    def hear(self) -> bytes:
        """Raises EOFError where the parent is gone."""
        return self._exactly(LENGTH.unpack(self._exactly(LENGTH.size))[0])

    def _exactly(self, count: int) -> bytes:
        found = bytearray(count)
        view = memoryview(found)
        while view:
            got = self._end.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return bytes(found)


def main() -> None:
    die_with_parent()
    channel = Channel(socket.socket(fileno=os.dup(0)))
    setup = msgspec.msgpack.decode(channel.hear(), type=Setup)
    try:
        from PIL import Image

        from quire.engine.frontend.media.processor import Processor

        processor = Processor(setup.model, setup.options)
        Image.MAX_IMAGE_PIXELS = None  # `decode` has a limit of its own, which refuses where this one only warns
    except ImportError as error:
        channel.say(Broken(f"a package is missing ({error}); run: pip install pillow transformers"))
        return
    except Exception as error:  # whatever is wrong with the model's files
        channel.say(Broken(f"the image processor of {setup.model} cannot be loaded: {error}"))
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel.say(Hello())
    while True:
        job = msgspec.msgpack.decode(channel.hear(), type=Job)
        channel.say(_answer(channel, processor, job, setup.max_pixels))
        del job


def _answer(channel: Channel, processor: Processor, job: Job, max_pixels: int) -> Answer:
    try:
        return _processed(channel, processor, job, max_pixels)
    except BadImageError as error:
        return Refused(str(error))
    except OSError as error:
        print(f"image not written: {error.strerror}", file=sys.stderr)
        return Refused("there is no room for its pixels", is_full=True)
    except MemoryError:
        return Refused("it takes too much memory to process")
    except (EOFError, KeyboardInterrupt):
        raise
    except Exception as error:  # what is in it is for the log, not for who sent the image
        print(f"image not processed: {type(error).__name__}", file=sys.stderr)
        return Refused(_NOT_PROCESSED)


def _processed(channel: Channel, processor: Processor, job: Job, max_pixels: int) -> Answer:
    from quire.engine.frontend.media import decode
    from quire.engine.frontend.media.processor import digest, write

    area = processor.area(job.options, job.most_pixels)
    image = decode.decoded(_opened(job, max_pixels))
    channel.say(Size(processor.num_bytes(image.width, image.height, area)))
    if not msgspec.msgpack.decode(channel.hear(), type=Go).go:
        return Refused("", is_full=True)
    rows, grid = processor.rows(image, area)
    write(rows, job.path)
    return Done(digest(rows, grid), grid)


def _opened(job: Job, max_pixels: int) -> Image.Image:
    from PIL import Image

    from quire.engine.frontend.media import decode

    if job.size is None:
        return decode.opened(job.data, max_pixels)
    decode.check_size(*job.size, max_pixels)
    return Image.frombytes("RGB", job.size, job.data)


if __name__ == "__main__":
    try:
        main()
    except (EOFError, ConnectionError, KeyboardInterrupt):  # the parent is gone, or a terminal ends all of us
        sys.exit(0)
