"""What each of several engines on this machine has to itself: a socket, its devices, a number in the log.

Knows no process and loads no torch; called by the launcher and by `EngineProcess`, which start them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError
from quire.engine.logs import ENGINE_NUMBER

VISIBLE = "CUDA_VISIBLE_DEVICES"


def addresses(directory: str, num_engines: int) -> list[str]:
    """Where they listen; one alone has no number."""
    if num_engines == 1:
        return [f"ipc://{directory}/engine.sock"]
    return [f"ipc://{directory}/engine-{place}.sock" for place in range(num_engines)]


def environments(args: EngineArgs, environment: Mapping[str, str], devices: str = "/dev") -> list[dict[str, str]]:
    """What each engine's process finds in its environment beside `environment`; nothing for one alone.

    Raises:
        ConfigError: there are fewer GPUs than the engines need.
    """
    if args.data_parallel_size == 1:
        return [{}]
    shares = _device_shares(args, environment, devices)
    return [{ENGINE_NUMBER: str(place), **share} for place, share in enumerate(shares)]


def _device_shares(args: EngineArgs, environment: Mapping[str, str], devices: str) -> list[dict[str, str]]:
    """What shows each no GPUs but its own; nothing on a CPU and in a Ray cluster.

    Raises:
        ConfigError: there are fewer GPUs than the engines need.
    """
    num_engines, num_ranks = args.data_parallel_size, args.num_ranks
    visible = environment.get(VISIBLE)
    hidden = visible is not None and not visible.strip()
    if args.device == "cpu" or args.distributed_executor_backend == "ray" or (hidden and args.device == "auto"):
        return [{} for _ in range(num_engines)]
    needed = num_engines * num_ranks
    names = [str(number) for number in range(needed)]
    if visible is None:
        # An engine that finds no GPU takes the CPU: one too many would do so unnoticed, unless the nodes tell of it.
        found = sum(re.fullmatch(r"nvidia\d+", node.name) is not None for node in Path(devices).iterdir())
        if 0 < found < needed:
            raise ConfigError(_too_few(args, f"this machine has {found}"))
    else:
        names = [name.strip() for name in visible.split(",") if name.strip()]
        if len(names) < needed:
            raise ConfigError(_too_few(args, f"{VISIBLE} lists {len(names)} ({visible})"))
    return [{VISIBLE: ",".join(names[first:first + num_ranks])} for first in range(0, needed, num_ranks)]


def _too_few(args: EngineArgs, there_are: str) -> str:
    return (f"--data-parallel-size: {args.data_parallel_size} engines of {args.num_ranks} GPU(s) each need "
            f"{args.data_parallel_size * args.num_ranks} GPUs, and {there_are}")
