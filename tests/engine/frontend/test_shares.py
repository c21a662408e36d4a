from __future__ import annotations

from pathlib import Path

import pytest

from quire import LLM
from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError
from quire.engine.frontend.shares import VISIBLE, addresses, environments
from quire.engine.logs import ENGINE_NUMBER


def devices(visible: str | None, directory: Path | str = "/nonexistent", **args: object) -> list[str | None]:
    """What each engine gets to see; None: what its parent sees."""
    environment = {} if visible is None else {VISIBLE: visible}
    found = environments(EngineArgs(**args), environment, str(directory))  # type: ignore[arg-type]
    return [own.get(VISIBLE) for own in found]


def test_each_of_several_engines_has_devices_of_its_own(tmp_path: Path) -> None:
    assert devices(None, tmp_path, data_parallel_size=2) == ["0", "1"]
    assert devices("4,5,6,7", data_parallel_size=2, tensor_parallel_size=2) == ["4,5", "6,7"]
    assert devices("GPU-a, MIG-b,GPU-c", data_parallel_size=2) == ["GPU-a", "MIG-b"]
    assert devices("0,1,2,3,4,5,6,7", data_parallel_size=2, tensor_parallel_size=2,
                   pipeline_parallel_size=2) == ["0,1,2,3", "4,5,6,7"]


def test_each_of_several_engines_has_a_number() -> None:
    two = EngineArgs(data_parallel_size=2, device="cpu")
    assert [own[ENGINE_NUMBER] for own in environments(two, {})] == ["0", "1"]
    assert environments(EngineArgs(), {}) == [{}]


def test_one_engine_and_engines_without_gpus_here_see_what_their_parent_sees() -> None:
    assert devices("3,4") == [None]
    assert devices("0", data_parallel_size=2, device="cpu") == [None, None]
    assert devices("", data_parallel_size=2) == [None, None]
    assert devices("0", data_parallel_size=2, distributed_executor_backend="ray") == [None, None]


@pytest.mark.parametrize("visible", ["0,1,2", ""])
def test_too_few_gpus_are_refused_by_number(visible: str) -> None:
    with pytest.raises(ConfigError, match=r"--data-parallel-size: 2 engines of 2 GPU\(s\) each need 4 GPUs, and "
                                          rf"CUDA_VISIBLE_DEVICES lists {len(visible[::2])} "):
        devices(visible, data_parallel_size=2, tensor_parallel_size=2, device="cuda")


def test_an_engine_too_many_does_not_end_up_on_the_cpu(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert devices(None, tmp_path, data_parallel_size=2) == ["0", "1"]
    with pytest.raises(ConfigError, match="need 3 GPUs, and this machine has 2"):
        devices(None, tmp_path, data_parallel_size=3)


def test_sockets_have_numbers_where_there_are_several() -> None:
    assert addresses("/run/q", 1) == ["ipc:///run/q/engine.sock"]
    assert addresses("/run/q", 2) == ["ipc:///run/q/engine-0.sock", "ipc:///run/q/engine-1.sock"]


def test_an_offline_llm_says_what_to_do_instead() -> None:
    with pytest.raises(ConfigError, match=r"--data-parallel-size: 2 engines .* use quire serve or AsyncLLMEngine"):
        LLM(data_parallel_size=2)
