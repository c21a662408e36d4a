"""Ranks that offer each other memory: who cannot open it says so to all, and nobody waits for him."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch.distributed import HashStore, PrefixStore  # type: ignore[attr-defined]

from quire.engine.execution import peers

REACH = {0: {1}, 1: {0, 2}, 2: {1}}  # as on boards whose GPUs are not all linked
KINDS = ("rows", "flags")
own = threading.local()


class Memory:
    """Stands for a GPU's, which this machine has none of."""

    device = torch.device("cpu")

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def untyped_storage(self) -> Memory:
        return self

    def _share_cuda_(self) -> tuple[int, int]:
        return 0, self._rank

    def get_device(self) -> int:
        return self._rank


class Unshared(Memory):
    def _share_cuda_(self) -> tuple[int, int]:
        raise RuntimeError("cannot be shared")


def meet(store: Any, rank: int, memory: type[Memory]) -> str:
    """What all ranks agree that is wrong."""
    meeting, problem = PrefixStore("peers", store), ""
    for what in KINDS:
        peers._offer(meeting, what, rank, memory(rank))  # type: ignore[arg-type]
    try:
        for what in KINDS:
            peers._open(meeting, what, rank, len(REACH), memory(rank))  # type: ignore[arg-type]
    except RuntimeError as error:
        problem = str(error)
    return peers._problems(meeting, "mapped", rank, len(REACH), problem)


@pytest.mark.parametrize(("kinds", "said"), [((Memory,) * 3, "no way from 0 to 2"),
                                             ((Memory, Unshared, Memory), "cannot be shared")])
def test_what_one_rank_cannot_open_all_hear_of_and_none_waits(kinds: tuple[type[Memory], ...], said: str,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(device: int, peer: int) -> torch.UntypedStorage:
        if peer not in REACH[device]:
            raise RuntimeError(f"no way from {device} to {peer}")
        return torch.UntypedStorage(8)

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared_cuda", staticmethod(opened))
    store = HashStore()
    store.set_timeout(timedelta(seconds=10))
    with ThreadPoolExecutor(len(REACH)) as pool:
        assert list(pool.map(lambda rank: meet(store, rank, kinds[rank]), REACH)) == [said] * len(REACH)
