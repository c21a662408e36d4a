"""A step's result on its way to the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.engine.execution.special_rows import Logprobs
from quire.engine.plan import StepResult


@dataclass(slots=True)
class Pending:
    """Copies queued behind the step; `result` waits for them and for nothing later."""

    token_ids: torch.Tensor | None
    logprobs: tuple[torch.Tensor, ...] | None  # of the samples in `wanted`, in that order
    wanted: dict[int, int]  # by place, how many alternatives
    event: torch.cuda.Event | None

    @classmethod
    def of(cls, token_ids: torch.Tensor, logprobs: Logprobs | None = None, wanted: dict[int, int] | None = None
           ) -> Pending:
        event = None
        copied: tuple[torch.Tensor, ...] | None = logprobs
        if token_ids.is_cuda:
            token_ids = _to_host(token_ids)
            copied = None if logprobs is None else tuple(_to_host(t) for t in logprobs)
            event = _recorded()
        return cls(token_ids, copied, wanted or {}, event)

    @classmethod
    def empty(cls, device: torch.device) -> Pending:
        """Of a step that samples nothing, or not here. It is waited for all the same: for what may go wrong in it, and
        so that no more steps are queued than the core means to.
        """
        return cls(None, None, {}, None if device.type == "cpu" else _recorded())

    def result(self) -> StepResult:
        if self.event is not None:
            self.event.synchronize()
        if self.token_ids is None:
            return StepResult([])
        result = StepResult(self.token_ids.tolist())
        if self.logprobs is not None:
            own, ranks, top_ids, top = (t.tolist() for t in self.logprobs)
            result.logprobs = {place: (own[i], ranks[i], top_ids[i][:k], top[i][:k])
                               for i, (place, k) in enumerate(self.wanted.items())}
        return result


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record()
    return event


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
