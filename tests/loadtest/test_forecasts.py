"""The simulator's forecasts, beside what was measured on a GPU."""

from __future__ import annotations

import pytest

from quire.loadtest.simulate.check import MEASURED, MOST_OFF, TYPICAL_MODELS, TYPICAL_WORKLOADS, Forecast, forecast_s

BOUND = [(model, workload) for model in TYPICAL_MODELS for workload in TYPICAL_WORKLOADS if workload in MEASURED[model]]
QUICK = [case for case in BOUND if case[0] == "qwen2.5-7b" or case[1] == "single"]


def off(model: str, workload: str) -> float:
    return Forecast(model, workload, forecast_s(model, workload), MEASURED[model][workload]).off


@pytest.mark.parametrize(("model", "workload"), QUICK)
def test_a_forecast_is_within_a_tenth_of_what_was_measured(model: str, workload: str) -> None:
    assert abs(off(model, workload)) <= MOST_OFF


@pytest.mark.slow
@pytest.mark.parametrize(("model", "workload"), [case for case in BOUND if case not in QUICK])
def test_so_is_each_of_the_others(model: str, workload: str) -> None:
    assert abs(off(model, workload)) <= MOST_OFF
