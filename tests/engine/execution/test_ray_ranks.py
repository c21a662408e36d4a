"""What ranks in a Ray cluster hold of this process, on a Ray of a few lines; the real one is tests/faults' matter."""

from __future__ import annotations

import importlib.util
import os
import select
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quire.engine.config import EngineArgs
from quire.engine.execution.rank import RankSpec
from tests.engine.models import tiny
from tests.engine.models.paging import config_of

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")

ARGS = EngineArgs(device="cpu", pipeline_parallel_size=2, distributed_executor_backend="ray")
SPECS: Any = [SimpleNamespace(rank=rank) for rank in range(2)]


class FakeRay:
    def __init__(self) -> None:
        self.over: list[Any] = []
        self.room = True
        self.fails: Exception | None = None
        self.calls: list[str] = []
        self.is_joined = False
        self.util = SimpleNamespace(
            get_node_ip_address=lambda: "127.0.0.1", remove_placement_group=lambda group: self.calls.append("removed"),
            placement_group=lambda *_, **__: SimpleNamespace(ready=lambda: "ready"))

    def is_initialized(self) -> bool:
        return self.is_joined

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
    from quire.engine.execution import ray_ranks

    fake = FakeRay()
    monkeypatch.setattr(ray_ranks, "ray", fake)
    monkeypatch.setattr(ray_ranks, "PlacementGroupSchedulingStrategy", lambda *_, **__: None)
    monkeypatch.setattr(ray_ranks.msgspec.msgpack, "encode", lambda spec: b"")
    return fake


def make(progress: Any = lambda *_: None) -> Any:
    from quire.engine.execution.ray_ranks import RayRanks

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


def test_a_program_that_is_in_the_cluster_already_stays_in_it(ray: FakeRay) -> None:
    ray.is_joined = True
    make().stop()
    assert ray.calls == ["killed", "killed", "removed"]


def test_a_node_fetches_the_commit_that_the_others_load_also_where_some_of_it_is_there(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quire.engine.execution import ray_ranks

    snapshot = tmp_path / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)  # begun, and not ended
    tiny.write(tmp_path, "llama")
    config, asked = config_of(tmp_path), []

    def resolve(args: EngineArgs) -> Any:
        asked.append((args.model, args.revision))
        return config.model

    monkeypatch.setattr(ray_ranks, "resolve_model", resolve)
    for path, revision in ((snapshot, "abc123"), (snapshot / "Q8_0" / "a.gguf", "abc123"), (tmp_path, None)):
        there = replace(config, args=replace(ARGS, model="org/name"), model=replace(config.model, path=str(path)))
        found = ray_ranks._with_local_model(RankSpec(0, 0, there, "tcp://core", "host", 1))
        assert found.config.model is config.model
        assert asked.pop() == ("org/name", revision)
