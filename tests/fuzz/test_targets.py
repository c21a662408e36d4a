"""Each fuzz target runs, without a fuzzer, over its seeds and over inputs made of them by chance: it cannot rot between
two runs of `make fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest

from quire.engine.weights import gguf_config
from quire.engine.weights.gguf import GgufCheckpoint
from tests.fuzz import gguf_file, request_bodies
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS, load

COUNTS = {"requests": 150, "gguf": 25, "safetensors": 100, "pickled": 100, "images": 200, "keys": 150, "frames": 200}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_documented_errors_comes_of_any_input(name: str) -> None:
    found = load(name)
    seeds = found.seeds()
    for data in [b"", *seeds, *mutated(seeds, COUNTS[name])]:
        try:
            found.target(data)
        except Exception as error:
            pytest.fail(f"{data!r}: {type(error).__name__}: {error}")


def test_every_body_among_the_seeds_is_answered() -> None:
    loop, app = request_bodies._serving()
    for data in request_bodies.seeds():
        path = request_bodies.PATHS[data[0]]
        status, reply = loop.run_until_complete(request_bodies._post(app, path, data[1:]))
        assert status == 200, (path, data, reply)


def test_every_model_among_the_seeds_has_the_tensors_that_are_asked_for(tmp_path: Path) -> None:
    for data in gguf_file.seeds():
        (tmp_path / "m.gguf").write_bytes(data)
        gguf_config.read(tmp_path / "m.gguf")
        checkpoint = GgufCheckpoint(tmp_path / "m.gguf")
        assert sum(checkpoint.shape(name) is not None for name in gguf_file._NAMES) >= len(gguf_file._NAMES) - 2
        checkpoint.close()


def test_mutations_are_the_same_for_the_same_seed() -> None:
    seeds = [b"abc", b"0123456789"]
    once = list(mutated(seeds, 50))
    assert once == list(mutated(seeds, 50)) != list(mutated(seeds, 50, seed=1))
    assert len(set(once)) > 40
