"""The forecasts beside what was measured: `python -m quire.loadtest.simulate.check`. Exits 1 where one that is to be
within 10% is not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from quire.engine.config import EngineArgs
from quire.loadtest import workloads
from quire.loadtest.simulate import trace
from quire.loadtest.simulate.cost_model import TYPICAL
from quire.loadtest.simulate.figures import figures
from quire.loadtest.simulate.gpus import GPUS
from quire.loadtest.simulate.main import build
from quire.loadtest.simulate.replay import Replay

MEASURED: dict[str, dict[str, float]] = json.loads(
    Path(__file__).with_name("recorded.json").read_text(encoding="utf-8"))["seconds"]
# Dense models that keep the device busy, whose families' kernels the shares reached are of.
TYPICAL_MODELS = ("qwen2.5-7b", "llama-3.1-8b", "llama-7b", "llama-13b", "qwen3-8b")
TYPICAL_WORKLOADS = ("single", "decode", "prefill", "sharegpt")
MOST_OFF = 0.1
_AT_ONCE = 1e7  # requests a second


class Forecast(NamedTuple):
    model: str
    workload: str
    forecast_s: float
    measured_s: float

    @property
    def off(self) -> float:
        """By which share of the measured time; below 0: too fast."""
        return self.forecast_s / self.measured_s - 1

    @property
    def is_bound(self) -> bool:
        return self.model in TYPICAL_MODELS and self.workload in TYPICAL_WORKLOADS


def forecast_s(model: str, workload: str) -> float:
    """As recorded.json says how: seconds of all, of `single` for each later token."""
    flags = {"model": str(workloads.MODELS / model), "load_format": "dummy", "max_model_len": 4096,
             "gpu_memory_utilization": 0.85, "max_num_batched_tokens": 16384}
    plant = build(EngineArgs.of(flags), GPUS["h200"], TYPICAL)
    num_requests = len(workloads.load()[workload]["requests"])
    found = figures(Replay(plant.scheduler, plant.cost, max_queued_requests=num_requests, max_queued_tokens=10**9)
                    .run(trace.poisson(workload, _AT_ONCE, num_requests)))
    return float(found["tpot_s"]["p50"] if workload == "single" else found["seconds"])


def forecasts() -> Iterator[Forecast]:
    for model, measured in MEASURED.items():
        for workload, seconds in measured.items():
            yield Forecast(model, workload, forecast_s(model, workload), seconds)


def main() -> int:
    is_right = True
    for found in forecasts():
        bound = f"to be within {MOST_OFF:.0%}" if found.is_bound else ""
        print(f"{found.model:14}{found.workload:10}{found.forecast_s:10.4g} s, measured {found.measured_s:8.4g}"
              f"{found.off:+8.1%}  {bound}", flush=True)
        is_right &= not found.is_bound or abs(found.off) <= MOST_OFF
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
