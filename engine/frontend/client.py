"""The worker's end of border 1: submits requests, routes deltas to their streams, outlives the engine.

Keeps each request until it is over, so that an engine that comes back gets it again with the tokens produced so far and
the stream goes on where it paused; `resumption` says which one is given up instead. An error in the handling of one
request ends that request alone; `broke` hears of one that ends the connection. Used by `engine_group`, which moves what
an engine leaves behind that is gone for good; knows no HTTP, no prompt text and no other engine.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping

import msgspec
import structlog
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from quire.engine.errors import (
    EngineDeadError,
    InvalidRequestError,
    OverloadedError,
    PoisonRequestError,
    QuireError,
)
from quire.engine.frontend.load_progress import LoadProgress
from quire.engine.frontend.request import Request
from quire.engine.frontend.resumption import culprits
from quire.engine.frontend.routing import SAMPLE_TOKENS, Load
from quire.engine.messages import (
    UNREADABLE,
    Abort,
    Accepted,
    Delta,
    Deltas,
    Down,
    EngineInfo,
    Heartbeat,
    Loading,
    Ready,
    Rejected,
    Started,
    Status,
    Up,
)

log = structlog.get_logger(__name__)

HEARTBEAT_S = 1.0
LAST_WORDS_S = 1.0  # for the end of the connection to come behind the last words; one that is merely stuck says none
_POISON = ("The engine ended again and again while it worked on this request, so the request was given up: it may be "
           "the cause. Other requests go on.")
_UNREADABLE = ("A message of the engine could not be read, and it may have held tokens of this request, so the request "
               "was given up. Later ones go on.")


class EngineClient:
    """One connection to an engine at `address`, which need not be there yet. Lives on one event loop."""

    def __init__(self, address: str, changed: Callable[[], None], broke: Callable[[EngineDeadError], None],
                 facts: Mapping[str, int]) -> None:
        """`changed` is called when the engine got ready and when it was lost, `broke` when this connection is of no
        use any more; `facts` go into every log line."""
        self._address = address
        self._changed = changed
        self._broke = broke
        self._log = log.bind(**facts)
        self.info: EngineInfo | None = None
        self.state = "loading"  # "loading", "ready", "down", or "gone": for good
        self.load_progress = LoadProgress()
        self.status: Status | None = None
        self.num_restarts = 0
        self.load = Load()
        self._heard = time.monotonic()
        self._settled = asyncio.Event()  # ready for the first time, or dead
        self._dead: EngineDeadError | None = None
        self._by_sample: dict[int, tuple[Request, int]] = {}
        self._encode = msgspec.msgpack.Encoder().encode
        self._decoder = msgspec.msgpack.Decoder(Up)
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, os.urandom(12).hex().encode())
        self._socket.setsockopt(zmq.LINGER, 200)  # ms: lets a last Abort out
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(address)
        self._tasks = [asyncio.create_task(job(), name=f"engine-client-{job.__name__.strip('_')}")
                       for job in (self._receive, self._beat, self._watch)]
        for task in self._tasks:
            task.add_done_callback(self._task_ended)

    @property
    def loading(self) -> tuple[str, float]:
        """Phase and fraction done."""
        return self.load_progress.phase, self.load_progress.fraction

    @property
    def silent_s(self) -> float:
        """How long a ready engine has said nothing; it has something to say every second."""
        return time.monotonic() - self._heard if self.state == "ready" else 0.0

    async def wait_ready(self) -> EngineInfo:
        """The engine's facts, once the model is loaded. Raises EngineDeadError where that will never be."""
        await self._settled.wait()
        if self._dead is not None:
            raise self._dead
        return self.require_info()

    def require_info(self) -> EngineInfo:
        """The engine's facts. Raises OverloadedError while the model loads for the first time."""
        if self._dead is not None:
            raise self._dead
        if self.info is None:
            phase, fraction = self.loading
            raise OverloadedError(f"The model is not ready yet: {phase}, {fraction:.0%}.", retry_after_s=5.0,
                                  reason="loading")
        return self.info

    async def submit(self, request: Request) -> bool:
        """Send `request`; True when the engine accepted it, which may be after it came back, False when displaced.

        Raises:
            InvalidRequestError, OverloadedError: the engine's door refused it.
            EngineDeadError: the engine is gone for good.
        """
        self.require_info()
        try:
            self._enter(request)
            await request.accepted.wait()
        except BaseException:
            self.abort(request)
            raise
        if request.error is not None:
            raise request.error
        return not request.displaced

    def adopt(self, request: Request) -> None:
        """Go on with what another engine had accepted, from the tokens that it has."""
        try:
            self._enter(request)
        except Exception as error:
            self._fault([sample.id for sample in request.samples], error)

    def _enter(self, request: Request) -> None:
        unfinished = [(i, s.id) for i, s in enumerate(request.samples) if not request.generation.sample_finished(i)]
        for index, id in unfinished:
            self._by_sample[id] = (request, index)
        request.unread_tokens = len(request.prompt_token_ids)
        self.load.own += request.unread_tokens + SAMPLE_TOKENS * len(unfinished)
        if self.state == "ready":
            self._send_submit(request)

    def displace(self) -> None:
        """Give up what was not accepted yet: it may go to another engine."""
        for request in self._requests():
            if not request.accepted.is_set():
                self._forget(request)
                request.displaced = True
                request.accepted.set()

    def abort(self, request: Request) -> None:
        """Drop what is unfinished of `request`, here and in the engine. Does nothing to a finished one."""
        ids = [s.id for s in request.samples if self._drop(s.id) is not None]
        if ids:
            request.aborted = True
            request.changed.set()
            if self.state == "ready":
                self._send(Abort(ids))

    async def last_words(self) -> None:
        """Returns once all is handled that the engine said before its end."""
        deadline = time.monotonic() + LAST_WORDS_S
        while self.state == "ready" and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def give_up(self, error: EngineDeadError, *, after_kill: bool) -> list[Request]:
        """The engine is gone for good, and its last words were heard. Returns the requests that it had accepted, for
        another to go on with. What waits to be accepted is displaced, and what it seems to have died of fails.
        """
        self._end(error)
        self._judge(after_kill)
        accepted = [request for request in self._requests() if request.accepted.is_set()]
        for request in accepted:
            self._forget(request)
        self.displace()
        return accepted

    def fail_all(self, error: EngineDeadError) -> None:
        """The engine is gone for good: every unfinished request, and every later one, ends with `error`."""
        self._end(error)
        for request in self._requests():
            self._forget(request)
            request.fail(error)

    def _end(self, error: EngineDeadError) -> None:
        for task in self._tasks:  # nobody will speak or listen there again
            task.cancel()
        if self.state != "gone" and not self._socket.closed:
            self._socket.disconnect(self._address)
        self.state, self._dead, self.status = "gone", error, None
        self.load.lost()
        self._settled.set()

    async def close(self) -> None:
        if self._socket.closed:
            return
        self.state = "down"  # a stream that is dropped later has nobody to tell
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.disable_monitor()
        self._socket.close()
        self._context.destroy(linger=200)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """They never end by themselves. Without one of them nobody would hear of the engine any more."""
        if not task.cancelled() and (cause := task.exception()) is not None:
            error = EngineDeadError(f"The connection to the engine broke: {cause!r}.")
            error.__cause__ = cause
            self.fail_all(error)
            self._broke(error)

    # Sending

    def _send(self, message: Down) -> None:
        # A DEALER without a high-water mark never blocks; the future is done at once unless there is no peer yet.
        self._socket.send(self._encode(message))

    def _send_submit(self, request: Request) -> None:
        assert self.info is not None
        request.num_resumed += request.accepted.is_set()
        self._send(request.submission(self.info.instance))

    async def _beat(self) -> None:
        while True:
            self._send(Heartbeat(os.getpid()))
            await asyncio.sleep(HEARTBEAT_S)

    # Receiving

    async def _receive(self) -> None:
        while True:
            frame = await self._socket.recv()
            self._heard = time.monotonic()
            try:
                message = self._decoder.decode(frame)
            except UNREADABLE as error:
                if self.state != "ready":  # it may have been the word that the engine is, which comes only once
                    raise
                self._log.error("message of the engine cannot be read", exc_info=error)
                # It may have held anybody's tokens: better no answer than one with a hole in it.
                self._fault(list(self._by_sample), QuireError(_UNREADABLE))
                continue
            self._handle(message)

    def _handle(self, message: Up) -> None:
        if isinstance(message, Deltas):
            for delta in message.deltas:
                try:
                    self._take(delta)
                except Exception as error:
                    self._fault([delta.id], error)
        elif isinstance(message, (Started, Accepted, Rejected)):
            try:
                self._take_word(message)
            except Exception as error:
                self._fault(message.ids, error)
        elif isinstance(message, Status):
            self.status = message
            self.load.heard(message)
        elif isinstance(message, Loading):
            self.load_progress.update(message.phase, message.fraction, self._heard)
            if self.state == "down":
                self.state = "loading"
        elif isinstance(message, Ready):
            self._take_ready(message)

    def _fault(self, ids: Iterable[int], error: Exception) -> None:
        """`error` came up in the handling of these samples: their requests end with it, here and in the engine. It is
        theirs to log, with the request's id and once."""
        for id in ids:
            if id in self._by_sample:
                request, _ = self._by_sample[id]
                self.abort(request)
                request.fail(error)

    def _take_word(self, message: Started | Accepted | Rejected) -> None:
        if isinstance(message, Started):
            self._take_started(message)
        elif isinstance(message, Accepted):
            self._accept(message)
        else:
            self._reject(message)

    def _accept(self, message: Accepted) -> None:
        for id in message.ids:
            if id in self._by_sample:
                request, _ = self._by_sample[id]
                request.rate = message.rate
                request.accepted.set()

    def _take_started(self, message: Started) -> None:
        now = time.perf_counter()
        for part in message.parts:
            if part.id in self._by_sample:
                self._by_sample[part.id][0].begins(part.first, part.end)
        for id in message.ids:
            if id in self._by_sample:
                request, _ = self._by_sample[id]
                request.started = True
                if request.started_at is None:
                    request.started_at = now

    def _take(self, delta: Delta) -> None:
        entry = self._by_sample.get(delta.id)
        if entry is None:
            return  # aborted a moment ago
        request, index = entry
        update = request.generation.push(index, delta)
        if delta.prompt_logprobs is not None:
            return
        request.productive, request.suspicion = True, 0
        if request.unread_tokens:
            self._prompt_read(request)
        if request.generation.sample_finished(index):
            self._drop(delta.id)
            if not delta.finish_reason:  # a stop string in the text, which the engine cannot know
                self._send(Abort([delta.id]))
        if update is not None:
            request.put(update)

    def _reject(self, message: Rejected) -> None:
        for id in message.ids:
            request = self._drop(id)
            if request is None:
                continue
            if message.kind == "invalid":
                error: Exception = InvalidRequestError(message.message, message.param or None)
            else:
                error = OverloadedError(message.message, message.retry_after_s, own_limit=message.kind == "limit",
                                        reason=message.reason, rate=message.rate, closed_s=message.closed_s,
                                        spacing_s=message.spacing_s)
            request.fail(error)

    def _take_ready(self, message: Ready) -> None:
        info = message.info
        if self.info is not None and self.info.instance == info.instance:
            return
        self.num_restarts += self.info is not None
        self.info, self.state = info, "ready"
        self.load_progress.update("ready", 1.0, self._heard)
        self._settled.set()
        # Frames come in order: all that the engine before this one said is handled, and it can be judged.
        given_up = self._judge(message.after_kill)
        requests = self._requests()
        if requests or given_up:
            self._log.info("requests resubmitted", requests=len(requests), given_up=given_up,
                           suspects=sum(request.suspicion > 0 for request in requests))
        for request in requests:
            try:
                self._send_submit(request)
            except Exception as error:
                self._fault([sample.id for sample in request.samples], error)
        self._changed()

    def _judge(self, after_kill: bool) -> int:
        """After an engine's end: how many requests were given up for it."""
        given_up = culprits(self._requests(), after_kill=after_kill)
        for request in given_up:
            self._forget(request)
            request.fail(PoisonRequestError(_POISON))
        return len(given_up)

    # The engine going away

    async def _watch(self) -> None:
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())
            if event["event"] == zmq.EVENT_DISCONNECTED and self.state == "ready":
                lost = self.info
                # Its last words come by another socket, and say which requests it had begun: they go first.
                while self.info is lost and int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                    await asyncio.sleep(0)
                if self.info is lost:
                    self._lost()

    def _lost(self) -> None:
        self.state = "down"
        self.status = None
        self.load_progress = LoadProgress()  # of the engine that follows
        self.load.lost()
        self._log.warning("engine lost", requests_in_flight=len(self._requests()))
        self._changed()

    def _requests(self) -> list[Request]:
        """The unfinished ones, each once."""
        return list({id(request): request for request, _ in self._by_sample.values()}.values())

    def _forget(self, request: Request) -> None:
        for sample in request.samples:
            self._drop(sample.id)

    def _drop(self, id: int) -> Request | None:
        """Whose sample it was; None where it is gone already."""
        entry = self._by_sample.pop(id, None)
        if entry is None:
            return None
        self._prompt_read(entry[0])  # or it will not be
        self.load.own -= SAMPLE_TOKENS
        return entry[0]

    def _prompt_read(self, request: Request) -> None:
        self.load.own -= request.unread_tokens
        request.unread_tokens = 0
