"""What ranks in a Ray cluster hold of this process, on a Ray of a few lines; the real one is tests/faults' matter."""

from __future__ import annotations

import importlib.util
import os
import select
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from engine.config import EngineArgs

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")

ARGS = EngineArgs(device="cpu", pipeline_parallel_size=2, distributed_executor_backend="ray")
SPECS: Any = [SimpleNamespace(rank=rank) for rank in range(2)]


class FakeRay:
    def __init__(self) -> None:
        self.over: list[Any] = []
        self.room = True
        self.fails: Exception | None = None
        self.calls: list[str] = []
        self.util = SimpleNamespace(
            get_node_ip_address=lambda: "127.0.0.1", remove_placement_group=lambda group: self.calls.append("removed"),
            placement_group=lambda *_, **__: SimpleNamespace(ready=lambda: "ready"))

    def init(self, **_: Any) -> None:
        self.calls.append("init")

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def remote(self, cls: Any) -> Any:
        def make() -> Any:
            return SimpleNamespace(node=SimpleNamespace(remote=lambda: ("node", "address")),
                                   run=SimpleNamespace(remote=lambda spec: object()))

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    def get(self, what: Any) -> Any:
        return what

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "node")

    def wait(self, refs: list[Any], num_returns: int = 1, timeout: float = 0) -> tuple[list[Any], list[Any]]:
        if refs == ["ready"]:
            return (refs if self.room else []), []
        if self.fails is not None:
            raise self.fails
        return [ref for ref in refs if ref in self.over], []

    def kill(self, actor: Any) -> None:
        self.calls.append("killed")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    from engine.execution import ray_ranks

    fake = FakeRay()
    monkeypatch.setattr(ray_ranks, "ray", fake)
    monkeypatch.setattr(ray_ranks, "PlacementGroupSchedulingStrategy", lambda *_, **__: None)
    monkeypatch.setattr(ray_ranks.msgspec.msgpack, "encode", lambda spec: b"")
    return fake


def make(progress: Any = lambda *_: None) -> Any:
    from engine.execution.ray_ranks import RayRanks

    return RayRanks(ARGS, progress)


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def readable(end: int) -> bool:
    return bool(select.select([end], [], [], 5)[0])


def test_ranks_that_are_stopped_leave_no_file_open(ray: FakeRay) -> None:
    before = open_files()
    for over in (0, 1):
        ranks = make()
        ends = ranks.start(SPECS)
        ray.over = ranks._running[:over]
        assert all(readable(end) for end in ends[:over])
        ranks.stop()
        assert open_files() == before


def test_ranks_that_ray_tells_nothing_of_count_as_over(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    ray.fails = ConnectionError("the cluster is gone")
    ranks = make()
    assert all(readable(end) for end in ranks.start(SPECS))
    ranks.stop()


def test_a_start_that_is_given_up_gives_the_nodes_back(ray: FakeRay) -> None:
    ray.room = False
    polls = iter(range(3))

    def interrupt(phase: str, fraction: float) -> None:
        if next(polls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(interrupt)
    assert ray.calls == ["init", "removed", "shutdown"]
