"""Ranks as actors of a Ray cluster, for engines that need more than one machine. Needs the package ray.

Ray finds the machines, starts the actors and notices lost nodes; plans and tensors do not pass through it. Every node
needs Quire, and the model at the same path or from the same hub.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError, RankError
from quire.engine.execution.hardware import Hardware, of_this_machine
from quire.engine.execution.model_runner import Progress
from quire.engine.execution.rank import RankSpec, run
from quire.engine.weights.locate import resolve_model

try:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
except ImportError as error:
    raise ConfigError("--distributed-executor-backend: ray is not installed; pip install 'ray>=2.40'") from error

POLL_S = 0.5
STOP_S = 10.0


class _Actor:
    """One rank's process, on whichever node Ray put it."""

    def node(self) -> tuple[str, str]:
        """Its id and its address."""
        context = ray.get_runtime_context()
        return context.get_node_id(), ray.util.get_node_ip_address()

    def hardware(self) -> Hardware:
        return of_this_machine()

    def run(self, spec: bytes) -> int:
        return run(_with_local_model(msgspec.msgpack.decode(spec, type=RankSpec)))


class RayRanks:
    def __init__(self, args: EngineArgs, progress: Progress) -> None:
        """Returns when the cluster has room for all ranks, which may be when a lost node is replaced."""
        on_sigterm = signal.getsignal(signal.SIGTERM)
        self._joined = not ray.is_initialized()  # else whoever did will leave, too
        try:
            if self._joined:
                ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), configure_logging=False, log_to_driver=True)
        except ConnectionError as error:
            raise ConfigError("--distributed-executor-backend: there is no Ray cluster here; `ray start --head` "
                              f"begins one, RAY_ADDRESS names one elsewhere ({error})") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray put its own there
        self.host = ray.util.get_node_ip_address()
        self.address = f"tcp://{self.host}:*"
        self._group: Any = None
        self._actors: list[Any] = []
        self._nodes: list[str] = []
        self._running: list[Any] = []
        self._ends: list[int] = []
        self._held: dict[Any, int] = {}  # by what runs: closed when it is over
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        atexit.register(self.stop)  # before Ray's own, under which the watcher would crash
        try:
            self._take_nodes(args, progress)
        except BaseException:  # whoever builds this may live on, and the cluster is not his alone
            self.stop()
            raise

    def _take_nodes(self, args: EngineArgs, progress: Progress) -> None:
        kind = "CPU" if args.device == "cpu" else "GPU"
        self._group = ray.util.placement_group([{kind: 1}] * args.num_ranks, strategy="PACK")
        self._wait_for_room(f"{args.num_ranks} {kind}s", progress)
        actor_class: Any = ray.remote(_Actor)
        actors = self._actors = [actor_class.options(
            num_cpus=int(kind == "CPU"), num_gpus=int(kind == "GPU"), max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle),
        ).remote() for bundle in range(args.num_ranks)]
        nodes = ray.get([actor.node.remote() for actor in actors])
        # Ranks of one stage talk most: neighbours in number are on one node, beginning with ours.
        mine = ray.get_runtime_context().get_node_id()
        order = sorted(range(args.num_ranks), key=lambda i: (nodes[i][0] != mine, nodes[i][0], i))
        self._actors = [actors[i] for i in order]
        self._nodes = [nodes[i][1] for i in order]

    def hardware(self) -> Hardware:
        found: Hardware = ray.get(self._actors[0].hardware.remote())
        return found

    def device_index(self, rank: int) -> int:
        return 0  # Ray shows each actor its own GPU only

    def start(self, specs: list[RankSpec]) -> list[int]:
        self._running = [actor.run.remote(msgspec.msgpack.encode(spec)) for actor, spec in zip(self._actors, specs)]
        for running in self._running:
            end, self._held[running] = os.pipe()
            self._ends.append(end)
        self._watcher = threading.Thread(target=self._watch, name="ray-watch", daemon=True)
        self._watcher.start()
        return self._ends

    def end_of(self, rank: int) -> RankError:
        where = f"rank {rank} on {self._nodes[rank]}"
        try:
            code = ray.get(self._running[rank], timeout=STOP_S)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            return RankError(f"{where} is lost: {error}", killed=True)
        except ray.exceptions.RayError as error:
            return RankError(f"{where} broke: {error}")
        return RankError(f"{where} ended with exit code {code}")

    def stop(self) -> None:
        if self._stopping.is_set():
            return
        self._stopping.set()
        atexit.unregister(self.stop)
        if self._watcher is not None:
            self._watcher.join()
        for descriptor in (*self._ends, *self._held.values()):
            os.close(descriptor)
        for actor in self._actors:
            ray.kill(actor)
        if self._group is not None:
            ray.util.remove_placement_group(self._group)
        if self._joined:
            ray.shutdown()

    def _watch(self) -> None:
        """Closes a rank's pipe end when it is over; those of all when Ray tells no more."""
        try:
            while self._held and not self._stopping.is_set():
                for over in ray.wait(list(self._held), num_returns=1, timeout=POLL_S)[0]:
                    os.close(self._held.pop(over))
        finally:
            while self._held:
                os.close(self._held.popitem()[1])

    def _wait_for_room(self, wanted: str, progress: Progress) -> None:
        ready = self._group.ready()
        phase = f"waiting for {wanted} of the Ray cluster"
        progress(phase, 0.0)
        while not ray.wait([ready], timeout=POLL_S)[0]:
            progress(phase, 0.0)
        ray.get(ready)


def _with_local_model(spec: RankSpec) -> RankSpec:
    """A hub's model lies elsewhere on each node, or not yet, or in part; what all load is of one commit."""
    config, args = spec.config, spec.config.args
    path = Path(config.model.path)  # of a directory, or of a GGUF file in one
    for snapshot in (path, *path.parents):
        if snapshot.parent.name == "snapshots":  # the hub's cache, by commit
            args = replace(args, revision=snapshot.name)
    return msgspec.structs.replace(spec, config=replace(config, model=resolve_model(args)))
