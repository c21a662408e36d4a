from __future__ import annotations

from pathlib import Path

import pytest

from quire.loadtest.__main__ import main

SHAPES = Path(__file__).parents[2] / "loadtest" / "models"


@pytest.mark.parametrize(("argv", "said"), [
    (["transformers", "--repeats", "0"], "argument --repeats: 0 is less than 1"),
    (["transformers", "--threads", "many"], "'many' is not a whole number"),
    (["overhead", "--requests", "0"], "argument --requests: 0 is less than 1"),
    (["throughput", "--model", "x", "--json", "/nowhere/x"], "/nowhere/x cannot be written: No such file or directory"),
    (["throughput", "--modle", "x"], "there is no setting '--modle'; did you mean '--model'?"),
    (["features", "--model", "m", "--feature", "x"], "there are greedy; top_p, top_k, min_p; penalties; "),
    (["serve", "--model", "m", "--url", "http://a..b"], "--url: http://a..b is no address"),
    (["side-by-side", "--before", "/", "--model", "m"], "--before: / is no checkout of Quire")])
def test_what_cannot_be_measured_is_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    told = capsys.readouterr().err
    assert ended.value.code == 2 and said in told and told.count("\n") == 1


def test_a_mistyped_measurement_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["throughputt"]) == 2
    assert capsys.readouterr().err == "quire bench: there is no 'throughputt'; did you mean 'throughput'?\n"


def test_a_model_larger_than_the_memory_is_refused_with_both_sizes(capsys: pytest.CaptureFixture[str],
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.engine.memory_need.free_and_total", lambda: (2**30, 2**30))
    assert main(["throughput", "--model", str(SHAPES / "llama-13b"), "--device", "cpu"]) == 2
    assert "48.5 GiB for weights" in capsys.readouterr().err
