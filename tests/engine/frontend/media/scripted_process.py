"""In place of the pool's process: as an image's bytes say, it answers, hangs, dies or talks nonsense."""

from __future__ import annotations

import os
import socket
import sys
import time

import msgspec

from quire.engine.frontend.media.jobs import LENGTH, Broken, Done, Go, Hello, Job, Refused, Size
from quire.engine.frontend.media.process import Channel

channel = Channel(socket.socket(fileno=os.dup(0)))
channel.hear()
channel.say(Broken("as it was told") if "broken" in sys.argv else Hello())
while True:
    try:
        job = msgspec.msgpack.decode(channel.hear(), type=Job)
    except EOFError:
        break
    match job.data:
        case b"hangs":
            time.sleep(60)
        case b"dies":
            os.abort()
        case b"nonsense":
            channel.say(Hello())
        case b"no text":
            frame = b"\x92\xa6broken\xa1\xff"
            channel._end.sendall(LENGTH.pack(len(frame)) + frame)
        case b"no room":
            channel.say(Refused("", is_full=True))
        case data:
            channel.say(Size(len(data)))
            if msgspec.msgpack.decode(channel.hear(), type=Go).go:
                with open(job.path, "wb") as file:
                    file.write(data)
                channel.say(Done(b"digest", (1, 2, 2)))
            else:
                channel.say(Refused("", is_full=True))
