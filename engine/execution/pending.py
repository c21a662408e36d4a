"""A step's result on its way to the host."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from quire.engine.execution.special_rows import Logprobs
from quire.engine.execution.told_prompts import ToldPrompts
from quire.engine.plan import StepResult


@dataclass(slots=True)
class Pending:
    """Copies queued behind the step; `result` waits for them and for nothing later."""

    event: torch.cuda.Event | None
    token_ids: torch.Tensor | None = None
    logprobs: tuple[torch.Tensor, ...] | None = None  # of the samples in `wanted`, in that order
    wanted: dict[int, int] = field(default_factory=dict)  # by place, how many alternatives
    told: ToldPrompts | None = None
    pooled: torch.Tensor | None = None  # [pooled rows, width] float32
    _ids: list[int] | None = None
    # Of a step that is not launched to its end (`open_step`): what launches the rest, and gives what there is then.
    _finish: Callable[[], Pending] | None = None
    _once_known: Callable[[], None] | None = None
    # One thread may launch and another wait for results. Of several steps, the lock of the later one is taken first.
    _turn: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def of(cls, token_ids: torch.Tensor | None, logprobs: Logprobs | None = None, wanted: dict[int, int] | None = None,
           told: ToldPrompts | None = None, pooled: torch.Tensor | None = None) -> Pending:
        """On the step's own device."""
        event = None
        here = [t for t in (token_ids, pooled, *(logprobs or ()), *(told.tensors if told is not None else ()))
                if t is not None]
        copied: tuple[torch.Tensor, ...] | None = logprobs
        if here[0].is_cuda:
            token_ids = None if token_ids is None else _to_host(token_ids)
            copied = None if logprobs is None else tuple(map(_to_host, logprobs))
            told = None if told is None else replace(told, tensors=tuple(map(_to_host, told.tensors)))
            pooled = None if pooled is None else _to_host(pooled)
            event = _recorded()
        return cls(event, token_ids, copied, wanted or {}, told, pooled)

    @classmethod
    def empty(cls, device: torch.device) -> Pending:
        """Of a step that samples nothing, or not here. It is waited for all the same: for what may go wrong in it, and
        so that no more steps are queued than the core means to.
        """
        return cls(None if device.type == "cpu" else _recorded())

    @classmethod
    def open(cls, finish: Callable[[], Pending]) -> Pending:
        """Of a step whose rest `finish` launches, which is called once."""
        return cls(None, _finish=finish)

    def settle(self) -> None:
        """Launch the rest, where there is any."""
        with self._turn:
            if self._finish is not None:
                rest = self._finish()
                self.event, self.token_ids, self.logprobs = rest.event, rest.token_ids, rest.logprobs
                self.wanted, self.told, self.pooled, self._finish = rest.wanted, rest.told, rest.pooled, None

    def once_known(self, act: Callable[[], None]) -> None:
        """`act` is called as soon as the host has the tokens: now, or by the first who asks for them."""
        with self._turn:
            if self._ids is None:
                self._once_known = act
            else:
                act()

    def tokens(self) -> list[int]:
        """Those that were drawn, once the step has ended."""
        with self._turn:
            if self._ids is None:
                self.settle()
                if self.event is not None:
                    self.event.synchronize()
                self._ids = [] if self.token_ids is None else self.token_ids.tolist()
            act, self._once_known = self._once_known, None
            if act is not None:
                act()
            return self._ids

    def result(self) -> StepResult:
        result = StepResult(self.tokens())
        if self.logprobs is not None:
            own, ranks, top_ids, top = (t.tolist() for t in self.logprobs)
            result.logprobs = {place: (own[i], ranks[i], top_ids[i][:k], top[i][:k])
                               for i, (place, k) in enumerate(self.wanted.items())}
        if self.told is not None:
            result.prompt_logprobs = self.told.lists()
        if self.pooled is not None:
            result.pooled = [row.tobytes() for row in self.pooled.numpy()]
        return result


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record()
    return event


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
