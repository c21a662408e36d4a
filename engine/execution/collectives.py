"""torch.distributed among one engine's ranks: NCCL between GPUs, gloo between CPUs.

Ranks are numbered stage by stage: stage * tensor-parallel size + place in the stage. Made by
`quire.engine.execution.rank`, handed to the model as `quire.engine.parallel.Parallel`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from quire.engine.config import EngineConfig
from quire.engine.parallel import Collectives, Parallel, Stage
from quire.kernels import ops

if TYPE_CHECKING:
    from quire.kernels.all_reduce import Peers


def join(rank: int, config: EngineConfig, store: Store, device: torch.device) -> Parallel:
    """Meet the other ranks at `store`; this rank's place among them. Returns when all are there."""
    size, num_stages = config.args.tensor_parallel_size, config.args.pipeline_parallel_size
    on_cpu = device.type == "cpu"
    dist.init_process_group("gloo" if on_cpu else "nccl", store=store, rank=rank, world_size=size * num_stages)
    index, place = divmod(rank, size)
    # Every rank must take part in the making of every group.
    groups = [dist.new_group(list(range(stage * size, (stage + 1) * size))) for stage in range(num_stages)]
    collectives: Collectives | None = None
    if size > 1 and on_cpu:
        collectives = GlooCollectives(groups[index])
    elif size > 1:
        from quire.engine.execution.peers import connect  # brings Triton

        peers = connect(store, f"stage {index}", place, size, config.model.hidden_size, getattr(torch, config.dtype),
                        torch.device("cuda", torch.cuda.current_device()))
        collectives = NcclCollectives(groups[index], peers)
    neighbours = None if num_stages == 1 else _Neighbours(rank - size, rank + size)
    return Parallel(place, size, collectives, Stage(index, num_stages, neighbours))


class NcclCollectives:
    """Sums of few rows go through peers' memory, where there are peers."""

    def __init__(self, group: dist.ProcessGroup, peers: Peers | None) -> None:
        from quire.kernels import all_reduce  # Triton

        self._group = group
        self._peers = peers
        self._kernel = all_reduce

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        if self._peers is not None and self._peers.take(x):
            return self._kernel.all_reduce(x, self._peers)
        x = x.contiguous()
        dist.all_reduce(x, group=self._group)
        return x

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if self._peers is not None and self._peers.take(x):
            return self._kernel.all_reduce_add_rms_norm(x, residual, weight, eps, self._peers)
        return ops.add_rms_norm(self.all_reduce(x), residual, weight, eps)

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        gathered = x.new_empty(self._group.size(), *x.shape)
        dist.all_gather_into_tensor(gathered, x.contiguous(), group=self._group)
        return gathered


class GlooCollectives:
    """gloo writes from a thread of its own, which is outside inference mode: it may only write to ordinary tensors."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        total = _ordinary(x.shape, x.dtype).copy_(x)
        dist.all_reduce(total, group=self._group)
        return total

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return ops.add_rms_norm(self.all_reduce(x), residual, weight, eps)

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        gathered = _ordinary((self._group.size(), *x.shape), x.dtype)
        dist.all_gather(list(gathered.unbind()), x.contiguous(), group=self._group)
        return gathered


class _Neighbours:
    def __init__(self, before: int, after: int) -> None:
        self._before = before
        self._after = after

    def send(self, x: torch.Tensor) -> None:
        dist.send(x, self._after)

    def receive(self, x: torch.Tensor) -> None:
        if x.device.type == "cpu":
            buffer = _ordinary(x.shape, x.dtype)
            dist.recv(buffer, self._before)
            x.copy_(buffer)
        else:
            dist.recv(x, self._before)


def _ordinary(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype)
